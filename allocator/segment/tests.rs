//! What the tests of the layers above ask of a segment.

use super::*;

impl Segment {
    /// The longest runs there are, of granules in the chunks in use, and of free pages.
    pub(crate) fn longest_runs(&mut self) -> (usize, usize) {
        let (mut granules, mut pages) = (0, 0);
        for c in ones_of(!self.empties) {
            granules = granules.max(self.chunk(c).audit().map_or(0, |(_, longest)| longest));
        }
        let mut from = 0;
        while let Some((at, len)) = self.free_pages.run_from(from) {
            pages = pages.max(len);
            from = at + len;
        }
        (granules, pages)
    }
}

fn ones_of(mask: u64) -> impl Iterator<Item = usize> {
    (0..64).filter(move |i| mask >> i & 1 == 1)
}

#[test]
fn runs_of_pages_cross_words() {
    let mut pages = Pages([0; PAGE_WORDS]);
    assert_eq!(pages.run_from(0), None);
    for page in (60..200).chain(1000..1024) {
        pages.add(page);
    }
    assert_eq!(pages.run_from(0), Some((60, 140)));
    assert_eq!(pages.run_from(130), Some((130, 70)), "a run is told from where one asks");
    assert_eq!(pages.run_from(200), Some((1000, 24)));
    assert_eq!(pages.run_from(1024), None);
    pages.remove(128);
    assert_eq!(pages.run_from(0), Some((60, 68)));
}
