//! The control group's memory limit, for limits that are given as a percentage.
//! Called by: `start`, once, and only if a limit is a percentage.

use core::ffi::CStr;
use nearheap_numa::os;

const SELF: &CStr = c"/proc/self/cgroup";
const ROOT: &[u8] = b"/sys/fs/cgroup";
/// The first version of control groups, where the process sees its own at the root.
const V1: &CStr = c"/sys/fs/cgroup/memory/memory.limit_in_bytes";

/// `memory.max` of the innermost control group that has one, in bytes.
pub(crate) fn memory_max() -> Option<usize> {
    let mut buffer = [0; 1024];
    let mine = os::read_start(SELF, &mut buffer).ok().and_then(own_path);
    let mut path = mine.unwrap_or_default();
    let mut least = None;
    loop {
        least = smaller(least, limit_in(path));
        let Some(up) = path.iter().rposition(|&b| b == b'/') else { break };
        path = path.get(..up).unwrap_or_default();
    }
    least.or_else(|| limit_at(V1))
}

fn smaller(a: Option<usize>, b: Option<usize>) -> Option<usize> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The path in the line `0::/path` of `/proc/self/cgroup`, without a slash at its end.
fn own_path(text: &[u8]) -> Option<&[u8]> {
    let path = text.split(|&b| b == b'\n').find_map(|line| line.strip_prefix(b"0::"))?;
    Some(path.strip_suffix(b"/").unwrap_or(path))
}

fn limit_in(path: &[u8]) -> Option<usize> {
    let mut name = [0; 1200];
    let mut len = 0;
    for part in [ROOT, path, b"/memory.max\0"] {
        name.get_mut(len..len + part.len())?.copy_from_slice(part);
        len += part.len();
    }
    limit_at(CStr::from_bytes_with_nul(name.get(..len)?).ok()?)
}

#[inline(never)]
fn limit_at(name: &CStr) -> Option<usize> {
    let mut buffer = [0; 64];
    os::read_start(name, &mut buffer).ok().and_then(parse)
}

/// A number; `max`, and numbers so large that they mean it, are none.
fn parse(text: &[u8]) -> Option<usize> {
    let digits = text.trim_ascii();
    let mut n = 0_usize;
    for &d in digits {
        let d = usize::from(d.checked_sub(b'0').filter(|&d| d < 10)?);
        n = n.checked_mul(10)?.checked_add(d)?;
    }
    (!digits.is_empty() && n < 1 << 60).then_some(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_numbers_or_none() {
        assert_eq!(parse(b"536870912\n"), Some(536_870_912));
        for none in [
            &b"max\n"[..],
            b"",
            b"\n",
            b"9223372036854771712\n",
            b"12x",
            b"99999999999999999999999",
        ] {
            assert_eq!(parse(none), None);
        }
    }

    #[test]
    fn the_own_group_is_the_unified_one() {
        assert_eq!(own_path(b"12:memory:/a\n0::/user.slice/b\n"), Some(&b"/user.slice/b"[..]));
        assert_eq!(own_path(b"0::/\n"), Some(&b""[..]));
        assert_eq!(own_path(b"12:memory:/a\n"), None);
    }
}
