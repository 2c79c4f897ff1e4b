//! perftest in the guest, natively and under slackwater in turn, in one boot on one processor.
//!
//! A guest on a shared machine is noisy, so single figures say nothing. Each *pair* is a short run of the same program natively and
//! one under slackwater, right after each other, the order changing from pair to pair (ABBA); of the ratios of all pairs the median
//! is printed, with the confidence interval of the sign test, which assumes nothing of how the noise is distributed.
use crate::median;
use anyhow::{Context as _, Result, ensure};
use slackwater_harness::Kit;
use std::process::{Command, Stdio};

/// Program and arguments: fixed iterations, long enough that set-up does not matter. Where two ends spin on one processor a turn of
/// each lasts as long as the scheduler lets it, so what looks at latency sleeps on events where perftest can. (ib_send_lat cannot:
/// natively 10 of 11 runs with -e stand for ever in the guest, whose device says that a CQ is full.)
const PROGRAMS: [(&str, &str); 9] = [
    ("ib_send_bw", "-s 4096 -n 4000"),
    ("ib_send_bw", "-s 4096 -n 4000 --use_old_post_send"),
    ("ib_write_bw", "-s 4096 -n 8000"),
    ("ib_read_bw", "-s 4096 -n 4000"),
    ("ib_atomic_bw", "-n 4000"),
    ("ib_send_lat", "-n 200"),
    ("ib_write_lat", "-n 200"),
    ("ib_read_lat", "-n 1000 -e"),
    ("ib_atomic_lat", "-n 1000 -e"),
];
/// What a run may cost more than natively.
const BOUND: f64 = 1.01;

/// From outside: boots the guest, pinned to one processor, and prints what comes out there.
pub(crate) fn run(pairs: usize) -> Result<()> {
    let Some(xtask) = std::env::var_os("SLACKWATER_XTASK") else {
        println!("perftest: not measured ($SLACKWATER_XTASK is not set: `cargo xtask bench` sets it)");
        return Ok(());
    };
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(xtask).args(["guest", "-t", "3000", "-m", "1500", "-e", "SLACKWATER_KIT", "--"]);
    command.arg(std::env::current_exe()?).args(["perftest-inside", &format!("--pairs={pairs}")]);
    ensure!(command.stdin(Stdio::null()).status()?.success(), "perftest in the guest fails");
    Ok(())
}

/// Inside.
pub(crate) fn inside(pairs: usize) -> Result<()> {
    println!("{:<46}{:>12}{:>9}{:>20}", "perftest in the guest", "native", "ratio", "95 % of the median");
    let mut port = 20000;
    for (program, arguments) in PROGRAMS {
        let (mut natives, mut ratios) = (Vec::new(), Vec::new());
        for pair in 0..pairs {
            let mut figures = [0.0; 2];
            for turn in 0..2 {
                let ours = (turn + pair) % 2;
                port += 1;
                figures[ours] = figure(program, arguments, port, ours == 1)?;
            }
            natives.push(figures[0]);
            ratios.push(if program.ends_with("_bw") { figures[0] / figures[1] } else { figures[1] / figures[0] });
        }
        let (native, ratio) = (median(&mut natives), median(&mut ratios));
        let k = rank(pairs);
        let (low, high) = (ratios[k], ratios[pairs - 1 - k]);
        let verdict = match (ratio <= BOUND, low <= BOUND && high > BOUND) {
            (true, _) => "within 1 %",
            (false, true) => "1 % cannot be told",
            (false, false) => "OVER 1 %",
        };
        println!("{:<46}{native:>12.4}{ratio:>9.4}{low:>11.4}..{high:.4}  {verdict}", format!("{program} {arguments}"));
    }
    Ok(())
}

/// From this rank (0 is the least) to the same from the other end lies the median of all with 95 %, whatever the distribution.
fn rank(n: usize) -> usize {
    let (mut term, mut below) = (0.5_f64.powi(n as i32), 0.0);
    for k in 0..n / 2 {
        below += term;
        if below > 0.025 {
            return k.saturating_sub(1);
        }
        term *= (n - k) as f64 / (k + 1) as f64;
    }
    n / 2
}

/// One run: millions of messages a second, or microseconds (the median of the iterations), as the client prints it.
fn figure(program: &str, arguments: &str, port: u16, ours: bool) -> Result<f64> {
    let command = format!("{program} -x 2 -F -p {port} {arguments}");
    let script = format!(
        "{command} >/dev/null 2>&1 & server=$!
         until ss -Hltn 'sport = :{port}' | grep -q .; do kill -0 $server || exit 9; done
         {command} 127.0.0.1 || exit 8; wait $server"
    );
    let folder = format!("/tmp/perftest-{port}");
    let mut shell = if ours {
        let mut launch = Command::new(Kit::find()?.slackwater());
        launch.args(["launch", "--dir", &folder, "/bin/bash", "-c", &script]);
        launch
    } else {
        let mut bash = Command::new("/bin/bash");
        bash.args(["-c", &script]);
        bash
    };
    let output = shell.stdin(Stdio::null()).output()?;
    if ours {
        std::fs::remove_dir_all(&folder)?;
    }
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "`{command}` ended with {}: {text}", output.status);
    let row = text.lines().rev().find(|l| l.split_whitespace().next().is_some_and(|w| w.parse::<u64>().is_ok()));
    let value = row.and_then(|row| row.split_whitespace().nth(4)).and_then(|w| w.parse().ok());
    value.with_context(|| format!("`{command}` printed no figures: {text}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_interval_is_that_of_the_sign_test() {
        // From a table of the binomial distribution: of 31 the 10th to the 22nd, of 51 the 19th to the 33rd.
        assert_eq!((super::rank(31), super::rank(51), super::rank(6)), (9, 18, 0));
    }
}
