//! Programs of the system: the same output with the library as without. Short runs; `preload/campaign` has the long ones.

use crate::build::{library, run};
use rstest::rstest;
use std::process::Command;

const PYTHON: &str = r"
import collections, json, re, threading, multiprocessing, ctypes, hashlib
def work(n):
    words = [str(i * n % 7919) for i in range(20000)]
    return hashlib.sha256(json.dumps(collections.Counter(words), sort_keys=True).encode()).hexdigest()
results = {}
threads = [threading.Thread(target=lambda n=n: results.__setitem__(n, work(n))) for n in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
print(sorted(results.items()))
with multiprocessing.get_context('fork').Pool(2) as pool:
    print(pool.map(work, range(4)))
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
block = libc.malloc(1000); libc.free(ctypes.c_void_p(block))
print(re.sub('a+', 'b', 'caaat' * 1000)[:20])
";

const PERL: &str = r#"
my %seen; for my $i (0..60000) { my $w = ($i * 7919) % 65521; push @{$seen{$w % 997}}, "$w" x ($w % 9); }
my $sum = 0; for my $k (sort { $a <=> $b } keys %seen) { $sum += length join ",", sort @{$seen{$k}}; }
print "$sum\n"; my $pid = fork(); if (!$pid) { my @a = map { "x" x $_ } 1..2000; print scalar(@a), "\n"; exit 0; }
waitpid $pid, 0; print "$?\n";
"#;

const SHELL: &str = "seq 1 60000 | sort -R --random-source=/etc/passwd | sort -n | awk '{ s[$1 % 100] = s[$1 % 100] $1 } \
    END { for (i = 0; i < 100; i++) print length(s[i]) }' | md5sum; find /usr/include -name '*.h' | sort | tail -n 3; \
    tar cf - /usr/include/linux 2>/dev/null | gzip -n | md5sum; bc -l <<< 'scale=50; 4*a(1)' 2>/dev/null";

const SQL: &str = "create table t(a, b); with recursive n(i) as (select 1 union all select i + 1 from n where i < 30000) \
    insert into t select i, hex(i * 7919 % 65521) from n; create index x on t(b); \
    select count(*), sum(a), max(b) from t where b > '3'; select group_concat(b) from t where a < 50;";

#[rstest]
#[case("python3", &["-c", PYTHON])]
#[case("perl", &["-e", PERL])]
#[case("bash", &["-c", SHELL])]
#[case("sqlite3", &[":memory:", SQL])]
#[case("git", &["--no-pager", "log", "-p", "-n", "3", "--stat"])]
#[case("gcc", &["-O2", "-S", "-x", "c", "-o", "-", "-pthread", CALLS])]
fn same_output(#[case] program: &str, #[case] arguments: &[&str]) {
    let command = || {
        let mut command = Command::new(program);
        command.args(arguments).env("LC_ALL", "C").current_dir(env!("CARGO_MANIFEST_DIR"));
        command
    };
    if command().arg("--version").output().is_err() {
        eprintln!("not run: there is no {program}");
        return;
    }
    let glibc = run(&mut command());
    assert_eq!(run(command().env("LD_PRELOAD", library())), glibc);
    assert!(!glibc.stdout.is_empty(), "{}", glibc.stderr);
}

const CALLS: &str = "tests/c_interface/programs/threads.c";
