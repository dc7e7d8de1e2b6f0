//! What must hold of a disk that is taken out of a stream: the same bytes in a file hold the same disk, or it is an error.

use std::io::Read;
use std::sync::Arc;

use cowhand::{Body, Image, Kind, Link, NoFiles, OpenOptions, Storage};

use crate::layer::refused;
use crate::mutate::Random;
use crate::sparse;

/// Longer inputs are not looked at: a stream is read whole.
const LONGEST: u64 = 16 << 20;

/// A stream that comes in pieces of any length.
pub(crate) struct Pieces<'a>(pub(crate) &'a [u8], pub(crate) Random);

impl Read for Pieces<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let most = if self.1.one_in(4) { 9 } else { 1 << 20 };
        let piece = (1 + self.1.below(most) as usize).min(buf.len());
        self.0.read(&mut buf[..piece])
    }
}

/// Takes the disk out of the stream that `input` is. True where the stream was whole.
pub(crate) fn take(format: &str, input: &[u8]) -> bool {
    let storage = sparse::unpack(input, LONGEST);
    let bytes = storage.to_vec();
    let format = cowhand::format(format).expect("the format is registered");
    let streams = format.streams().expect("the format has streams");
    match streams.head(&mut Pieces(&bytes, Random::new(input))) {
        Err(_) => {}
        Ok(head) => assert!(bytes.starts_with(&head.bytes), "the front is replayed otherwise"),
    }
    let len = Some(bytes.len() as u64);
    let mut source = match streams.source(Box::new(Pieces(&bytes, Random::new(input))), len) {
        Ok(source) => source,
        Err(_) => return false,
    };
    let size = source.disks()[0].size;
    // What came: from, the bytes.
    let mut came: Vec<(u64, Vec<u8>)> = Vec::new();
    loop {
        match source.next() {
            Ok(None) => break,
            Ok(Some(chunk)) => match chunk.body {
                Body::Bytes(bytes) => came.push((chunk.at, bytes.to_vec())),
                Body::Zero(len) => came.push((chunk.at, vec![0; len as usize])),
            },
            Err(_) => return false,
        }
    }
    let storage: Arc<dyn Storage> = Arc::new(storage);
    let layer = match format.open(storage, &NoFiles, &OpenOptions::default()) {
        Ok(layer) => layer,
        Err(error) => {
            refused(&error);
            panic!("a stream was taken for whole, and its file does not open: {error}");
        }
    };
    assert_eq!(layer.size(), size, "the disk's size");
    if let Some(id) = source.disks()[0].identity.0 {
        assert_eq!(layer.identity().0, Some(id), "the disk's identity");
    }
    let link = Link { layer, name: "file".to_owned(), format: format.names()[0] };
    let disk = Image::new(vec![link]).expect("one layer makes a disk");
    came.sort();
    let mut at = 0;
    for (start, bytes) in came {
        assert!(at <= start, "what stands at {start} comes twice");
        nothing(&disk, at, start);
        let mut there = vec![0; bytes.len()];
        disk.read(start, &mut there).expect("what came out of the stream is in the file");
        assert!(there == bytes, "{} bytes at {start} are others in the file", bytes.len());
        at = start + bytes.len() as u64;
    }
    nothing(&disk, at, size);
    true
}

/// The file has no data there either.
fn nothing(disk: &Image, mut at: u64, end: u64) {
    while at < end {
        let found = disk.extent(at, end - at).expect("the file can be read where the stream could");
        assert_ne!(found.kind, Kind::Data, "the file has {} bytes at {at}, and none came", found.len);
        at += found.len;
    }
}
