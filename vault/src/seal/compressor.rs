//! Compression of frames, with an effort that follows what it brings.
//!
//! zstd spends nearly as long on bytes that do not compress as on those that do. When a frame brought
//! nothing, only a sample of each following one is tried until a sample brings something again; when it
//! brought little, a faster level follows, which loses next to nothing there (PERFORMANCE §2: level -1
//! is 2.4 times as fast as level 1 on such data, and as small).

use zstd::bulk;
use zstd::zstd_safe::ResetDirective;

use crate::{Error, Result};

/// Fast enough to keep up with two cores' disks, PERFORMANCE.md "floors".
const LEVEL: i32 = 1;
const LIGHT_LEVEL: i32 = -1;
/// So many frames after one that brought little are compressed lightly before the better level is tried again.
const LIGHT_FRAMES: u32 = 15;
/// A sixteenth of a full frame, in eight places.
const SAMPLE_BYTES: usize = 64 << 10;
const SAMPLE_PIECES: usize = 8;
/// Smaller frames are not worth a guess.
const WORTH_SAMPLING: usize = 4 * SAMPLE_BYTES;

pub(super) struct Compressor {
    zstd: bulk::Compressor<'static>,
    level: i32,
    expect: Expectation,
    sample: Vec<u8>,
    scratch: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expectation {
    Much,
    Little { frames: u32 },
    Nothing,
}

impl Compressor {
    pub fn new() -> Result<Self> {
        let zstd = bulk::Compressor::new(LEVEL)
            .map_err(|error| Error::io("compression cannot be set up", error))?;
        Ok(Self {
            zstd,
            level: LEVEL,
            expect: Expectation::Much,
            sample: Vec::new(),
            scratch: Vec::new(),
        })
    }

    /// Compresses into `to`, which is as long as `content`. `None`: it saves less than a sixteenth.
    pub fn compress(&mut self, content: &[u8], to: &mut [u8]) -> Option<usize> {
        if content.len() < 64 {
            return None;
        }
        if content.len() < WORTH_SAMPLING {
            return self.at_level(LEVEL, content, worth(content.len(), to));
        }
        if self.expect == Expectation::Nothing && !self.sample_compresses(content) {
            return None;
        }
        let level = match &mut self.expect {
            Expectation::Little { frames } if *frames > 0 => {
                *frames -= 1;
                LIGHT_LEVEL
            }
            _ => LEVEL,
        };
        let length = self.at_level(level, content, worth(content.len(), to));
        self.expect = match (length, self.expect) {
            (None, _) => Expectation::Nothing,
            (Some(length), _) if length <= content.len() * 3 / 4 => Expectation::Much,
            (Some(_), Expectation::Little { frames }) if frames > 0 => self.expect,
            (Some(_), _) => Expectation::Little {
                frames: LIGHT_FRAMES,
            },
        };
        length
    }

    fn at_level(&mut self, level: i32, content: &[u8], to: &mut [u8]) -> Option<usize> {
        if self.level != level {
            self.zstd.set_compression_level(level).ok()?;
            self.level = level;
        }
        // The only error there can be is that it does not fit: then it is not worth it, and the context
        // is left in the middle of a frame.
        let length = self.zstd.compress_to_buffer(content, to).ok();
        if length.is_none() {
            let context = self.zstd.context_mut();
            context.reset(ResetDirective::SessionOnly).ok()?;
        }
        length
    }

    fn sample_compresses(&mut self, content: &[u8]) -> bool {
        let piece = SAMPLE_BYTES / SAMPLE_PIECES;
        let mut sample = std::mem::take(&mut self.sample);
        sample.clear();
        for index in 0..SAMPLE_PIECES {
            let at = (content.len() - piece) / (SAMPLE_PIECES - 1) * index;
            sample.extend_from_slice(&content[at..at + piece]);
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(SAMPLE_BYTES, 0);
        let compresses = self
            .at_level(LIGHT_LEVEL, &sample, worth(SAMPLE_BYTES, &mut scratch))
            .is_some();
        (self.sample, self.scratch) = (sample, scratch);
        compresses
    }
}

/// The room within which a result is worth having.
fn worth(content: usize, to: &mut [u8]) -> &mut [u8] {
    let room = (content - content / 16).min(to.len());
    &mut to[..room]
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: usize = 1 << 20;

    fn noise() -> Vec<u8> {
        let mut noise = vec![0; FRAME];
        crate::key::random(&mut noise).unwrap();
        noise
    }

    fn decompressed(packed: &[u8]) -> Vec<u8> {
        zstd::bulk::decompress(packed, FRAME).unwrap()
    }

    #[test]
    fn noise_is_left_alone_and_text_after_it_is_not() {
        let mut compressor = Compressor::new().unwrap();
        let (noise, mut to) = (noise(), vec![0; FRAME]);
        for _ in 0..3 {
            assert_eq!(compressor.compress(&noise, &mut to), None);
        }
        assert_eq!(compressor.expect, Expectation::Nothing);
        let text = b"a row like all the others ".repeat(FRAME / 26 + 1)[..FRAME].to_vec();
        let length = compressor.compress(&text, &mut to).unwrap();
        assert!(length < FRAME / 20);
        assert_eq!(decompressed(&to[..length]), text);
        assert_eq!(compressor.expect, Expectation::Much);
    }

    #[test]
    fn what_compresses_a_little_is_compressed_lightly_and_tried_again() {
        let mut compressor = Compressor::new().unwrap();
        let mut content = noise();
        for page in content.chunks_mut(8192) {
            page[6800..].fill(7);
        }
        let mut to = vec![0; FRAME];
        for _ in 0..40 {
            let length = compressor.compress(&content, &mut to).unwrap();
            assert!((FRAME / 2..FRAME * 15 / 16).contains(&length));
            assert_eq!(decompressed(&to[..length]), content);
            assert!(matches!(compressor.expect, Expectation::Little { .. }));
        }
    }

    #[test]
    fn small_frames_are_compressed_whatever_came_before() {
        let mut compressor = Compressor::new().unwrap();
        let mut to = vec![0; FRAME];
        assert_eq!(compressor.compress(&noise(), &mut to), None);
        let length = compressor.compress(&[5; 8192], &mut to[..8192]).unwrap();
        assert!(length < 100);
        assert_eq!(compressor.compress(&[5; 63], &mut to[..63]), None);
    }
}
