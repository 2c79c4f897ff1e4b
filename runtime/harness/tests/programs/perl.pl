#//# Needs: file:/usr/bin/perl
#//# Scenario: go-on, restart
# Perl as Debian has it: closures, hashes, sprintf, a child's exit status, regular expressions, sleeping by select.
use strict;
use warnings;
use Digest::SHA qw(sha256_hex);
$| = 1;
my %seen;
my $next = do { my $n = 0; sub { return $n++ } };
my $chain = "";
print "ready\n";
for (my $n = 0; ; $n++) {
    die "closure" unless $next->() == $n;
    $seen{$n} = sha256_hex($n);
    die "hash" unless keys(%seen) == $n + 1;
    for my $old (keys %seen) { die "entry $old" unless $seen{$old} eq sha256_hex($old) }
    $chain = sha256_hex($chain . $n);
    my $again = "";
    $again = sha256_hex($again . $_) for 0 .. $n;
    die "chain" unless $again eq $chain;
    die "regex" unless "beat $n" =~ /^(\w+) (\d+)$/ && $2 == $n;
    select(undef, undef, undef, 0.02);
    print "beat $n\n";
    last if -e $ENV{SW_STOP};
}
print "PASS\n";
