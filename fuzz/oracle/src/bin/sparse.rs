//! Packs an image into a fuzz input, or unpacks an input that failed into an image that other programs can look at.
//! Usage: `sparse pack IMAGE INPUT` or `sparse unpack INPUT IMAGE`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use cowhand::{MemoryStorage, Storage};
use cowhand_fuzz_oracle::{sparse, storage_of};

fn main() -> io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["pack", image, input] => {
            let storage = MemoryStorage::new();
            let image = fs::read(image)?;
            for (index, sector) in image.chunks(4096).enumerate() {
                if sector.iter().any(|byte| *byte != 0) {
                    storage.write_at(index as u64 * 4096, sector)?;
                }
            }
            storage.set_len(image.len() as u64)?;
            fs::write(input, sparse::pack(&storage)?)
        }
        ["unpack", input, image] => {
            let storage = storage_of(&fs::read(input)?);
            let file = File::create(image)?;
            file.set_len(storage.len()?)?;
            let mut at = 0;
            while let Some(data) = storage.data_at(at)? {
                let mut bytes = vec![0; (data.end - data.start) as usize];
                storage.read_at(data.start, &mut bytes)?;
                file.write_all_at(&bytes, data.start)?;
                at = data.end;
            }
            Ok(())
        }
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "usage: sparse pack IMAGE INPUT | sparse unpack INPUT IMAGE",
        )),
    }
}
