//! Compressed input, by its magic bytes: gzip (RFC 1952) and Zstandard (RFC 8878), in memory and time that
//! do not depend on what the data claims.

use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

/// How much longer than the compressed data the records may be, once they are longer than [`SLACK`]. Records
/// of one program that does the same all day become some 40 times shorter; a bomb is thousands of times
/// longer than its data.
const MAX_RATIO: u64 = 500;
const SLACK: u64 = 16 << 20;
/// Longest window of Zstandard; every level of `zstd` below `--ultra` keeps to 8 MiB. The decoder takes twice
/// as much memory.
const MAX_WINDOW: u64 = 32 << 20;

/// The input, decompressed if it is compressed. Reading it fails with [`ErrorKind::UnexpectedEof`] where
/// compressed data ends too early, and with [`ErrorKind::InvalidData`] where it is damaged or a bomb.
///
/// # Errors
/// When the input cannot be read.
pub(super) fn decompressed<'a>(mut input: Box<dyn BufRead + 'a>) -> io::Result<Box<dyn BufRead + 'a>> {
    let (mut magic, mut length) = ([0; 4], 0);
    while length < magic.len() {
        match input.read(&mut magic[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let input = Cursor::new(magic).take(length as u64).chain(input);
    Ok(match magic[..length] {
        [0x1f, 0x8b, ..] => limited(MultiGzDecoder::new(Source::new(input))),
        // The latter are the frames to be skipped, with one of which the output of `pzstd` begins.
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => limited(Zstd::new(Source::new(input))),
        _ => Box::new(input),
    })
}

fn limited<'a>(decoder: impl Decoder + 'a) -> Box<dyn BufRead + 'a> {
    Box::new(BufReader::with_capacity(64 << 10, Limited { decoder, came_out: 0 }))
}

/// Compressed data, and how much of it was taken.
struct Source<R> {
    input: R,
    taken: u64,
    /// Whether more was wanted than there is.
    ended: bool,
}

impl<R> Source<R> {
    fn new(input: R) -> Self {
        Self { input, taken: 0, ended: false }
    }
}

impl<R: BufRead> BufRead for Source<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let chunk = self.input.fill_buf()?;
        self.ended |= chunk.is_empty();
        Ok(chunk)
    }

    fn consume(&mut self, length: usize) {
        self.taken += length as u64;
        self.input.consume(length);
    }
}

impl<R: BufRead> Read for Source<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(into)?;
        self.consume(length);
        Ok(length)
    }
}

/// What decompresses a source.
trait Decoder: Read {
    const NAME: &'static str;

    /// Bytes that were taken of the source, and whether more were wanted than there are.
    fn source(&self) -> (u64, bool);
}

impl<R: BufRead> Decoder for MultiGzDecoder<Source<R>> {
    const NAME: &'static str = "gzip";

    fn source(&self) -> (u64, bool) {
        (self.get_ref().taken, self.get_ref().ended)
    }
}

/// The frames of Zstandard, one after the other.
struct Zstd<R> {
    source: Source<R>,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R> Zstd<R> {
    fn new(source: Source<R>) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_WINDOW);
        Self { source, decoder, in_frame: false }
    }
}

impl<R: BufRead> Zstd<R> {
    /// Begins the next frame, or skips one. Returns whether there was one.
    fn next_frame(&mut self) -> io::Result<bool> {
        if self.source.fill_buf()?.is_empty() {
            return Ok(false);
        }
        match self.decoder.init(&mut self.source) {
            Ok(()) => self.in_frame = true,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length, ..
            })) => {
                let length = u64::from(length);
                if io::copy(&mut (&mut self.source).take(length), &mut io::sink())? < length {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
            }
            Err(error) => return Err(io::Error::other(error)),
        }
        Ok(true)
    }

    fn end_frame(&mut self) -> io::Result<()> {
        self.in_frame = false;
        match self.decoder.get_checksum_from_data() {
            Some(said) if self.decoder.get_calculated_checksum() != Some(said) => {
                Err(io::Error::other("wrong checksum"))
            }
            _ => Ok(()),
        }
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.decoder.can_collect() > 0 {
                return self.decoder.read(into);
            }
            if !self.in_frame {
                if !self.next_frame()? {
                    return Ok(0);
                }
            } else if self.decoder.is_finished() {
                self.end_frame()?;
            } else {
                // At most 128 KiB come of one block.
                self.decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(io::Error::other)?;
            }
        }
    }
}

impl<R: BufRead> Decoder for Zstd<R> {
    const NAME: &'static str = "Zstandard";

    fn source(&self) -> (u64, bool) {
        (self.source.taken, self.source.ended)
    }
}

/// What comes out of a decoder, as far as that is in proportion to what went in.
struct Limited<D> {
    decoder: D,
    came_out: u64,
}

impl<D: Decoder> Read for Limited<D> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let result = self.decoder.read(into);
        let (taken, ended) = self.decoder.source();
        let invalid = |what: String| Err(io::Error::new(ErrorKind::InvalidData, what));
        match result {
            Ok(length) => {
                self.came_out += length as u64;
                if self.came_out > SLACK && self.came_out / MAX_RATIO > taken {
                    return invalid(format!("a bomb: {MAX_RATIO} times as long as its {} data", D::NAME));
                }
                Ok(length)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
            // Whatever the decoder calls it.
            Err(_) if ended => Err(ErrorKind::UnexpectedEof.into()),
            Err(error) => invalid(format!("damaged {} data: {error}", D::NAME)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    /// Written by `zstd -19 --check`, in two frames with one to be skipped in front.
    const OF_ZSTD: &[u8] = include_bytes!("../../tests/records/two-frames.zst");
    const OF_GZIP: &[u8] = include_bytes!("../../tests/records/two-members.gz");
    const PLAIN: &[u8] = include_bytes!("../../tests/records/plain.jsonl");

    /// What comes out, and the error in which it ends, if it does.
    fn read(input: &[u8]) -> (Vec<u8>, Option<io::Error>) {
        let mut out = Vec::new();
        let error = decompressed(Box::new(input)).unwrap().read_to_end(&mut out).err();
        (out, error)
    }

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(plain: &[u8]) -> Vec<u8> {
        compress_to_vec(plain, CompressionLevel::Fastest)
    }

    #[test]
    fn files_of_the_usual_tools_are_read() {
        for (name, compressed) in [("zstd", OF_ZSTD), ("gzip", OF_GZIP), ("plain", PLAIN)] {
            let (out, error) = read(compressed);
            assert!(error.is_none(), "{name}: {error:?}");
            assert!(out == PLAIN, "{name}: {}", String::from_utf8_lossy(&out));
        }
    }

    #[test]
    fn damage_is_an_error() {
        const MORE: &[u8] = b"something else behind it";
        let mut of_gzip = OF_GZIP.to_vec();
        *of_gzip.iter_mut().nth_back(4).unwrap() ^= 1;
        let mut of_zstd = OF_ZSTD.to_vec();
        *of_zstd.last_mut().unwrap() ^= 1;
        for damaged in [&of_gzip, &of_zstd, &[OF_GZIP, MORE].concat(), &[OF_ZSTD, MORE].concat()] {
            let error = read(damaged).1.unwrap();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
            assert!(error.to_string().starts_with("damaged "), "{error}");
        }
    }

    #[test]
    fn bomb_is_an_error() {
        let zeros = vec![0; 64 << 20];
        for bomb in [gzip(&zeros), zstd(&zeros)] {
            let (out, error) = read(&bomb);
            let error = error.unwrap();
            assert_eq!(error.kind(), ErrorKind::InvalidData);
            assert!(error.to_string().starts_with("a bomb: 500 times as long as its "), "{error}");
            assert!(out.len() < zeros.len() / 2, "{}", out.len());
        }
    }

    #[test]
    fn window_that_would_take_much_memory_is_refused() {
        // RFC 8878 §3.1.1.1.2: exponent 16, 2^(10+16) bytes.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, 16 << 3, 1, 0, 0];
        let (_, error) = read(&frame);
        assert_eq!(error.unwrap().kind(), ErrorKind::InvalidData);
        let smaller = [0x28, 0xb5, 0x2f, 0xfd, 0, 15 << 3, 1, 0, 0];
        assert!(read(&smaller).1.is_none());
    }

    proptest! {
        #[test]
        fn what_was_compressed_comes_out_and_as_much_of_it_as_is_there(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 1..4),
            cut: prop::sample::Index,
        ) {
            let plain = parts.concat();
            for compress in [gzip, zstd] {
                let compressed = parts.iter().map(|part| compress(part)).collect::<Vec<_>>();
                let boundaries: Vec<_> = (0..=compressed.len()).map(|n| compressed[..n].concat().len()).collect();
                let compressed = compressed.concat();
                let (out, error) = read(&compressed);
                prop_assert!(error.is_none(), "{error:?}");
                prop_assert!(out == plain);

                // Less than the magic bytes is not known to be compressed.
                let cut = 4 + cut.index(compressed.len() - 4);
                let (out, error) = read(&compressed[..cut]);
                prop_assert!(plain.starts_with(&out));
                match error {
                    None => prop_assert!(boundaries.contains(&cut), "cut at {cut} of {}", compressed.len()),
                    Some(error) => prop_assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{}", error),
                }
            }
        }

        #[test]
        fn no_bytes_are_too_hostile(
            plain in prop::collection::vec(any::<u8>(), 0..3000),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            for compress in [gzip, zstd] {
                let mut compressed = compress(&plain);
                for (at, byte) in &changes {
                    let at = at.index(compressed.len());
                    compressed[at] = *byte;
                }
                if let (_, Some(error)) = read(&compressed) {
                    let kinds = [ErrorKind::InvalidData, ErrorKind::UnexpectedEof];
                    prop_assert!(kinds.contains(&error.kind()), "{error}");
                }
            }
        }
    }
}
