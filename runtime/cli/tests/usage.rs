//! What the command line says to wrong usage, and to programs that cannot be launched: see the cases in `usage/`.
#[test]
fn usage_errors_and_refusals() {
    trycmd::TestCases::new().case("tests/usage/*.trycmd").env("SLACKWATER_DIR", "computation");
}
