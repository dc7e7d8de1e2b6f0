use std::sync::Arc;
use std::time::Duration;

use cowhand_core::{
    CreateOptions, Erase, Format, Kind, Layer, MemoryStorage, NoFiles, Options, ParentRef, Prealloc, Storage,
};

use super::*;
use crate::Vhdx;
use crate::draft::Draft;

/// A disk of 12 blocks of 1 MiB; a child where `child` says so.
fn made(child: bool) -> Arc<MemoryStorage> {
    let file = Arc::new(MemoryStorage::new());
    let given = [("block_size".to_owned(), "1M".to_owned())];
    let parent = ParentRef {
        candidates: vec!["base.vhdx".into()],
        format: Some("vhdx".to_owned()),
        expected: vec![[7; 16]],
        sector: Some(512),
        ..ParentRef::default()
    };
    let how = CreateOptions {
        size: 12 * MIB,
        options: Options::check(Vhdx.options(), &given).unwrap(),
        fresh: true,
        parent: child.then_some(parent),
        ..CreateOptions::default()
    };
    Vhdx.create(file.clone(), &NoFiles, &how).unwrap().close().unwrap();
    file
}

fn open(file: &Arc<MemoryStorage>) -> VhdxLayer {
    VhdxLayer::open_to_write(file.clone()).unwrap()
}

fn place(layer: &VhdxLayer, block: u64) -> u64 {
    match layer.state().block(block, layer.file_len()).unwrap() {
        Block::Full(at) | Block::Partial(at) => at / MIB,
        _ => 0,
    }
}

#[test]
fn blocks_move_into_gaps_and_the_file_ends_before() {
    let file = made(false);
    let layer = open(&file);
    for block in 0..4 {
        layer.write(block * MIB + 4096, &[block as u8 + 1; 5000]).unwrap();
    }
    layer.erase(MIB, MIB, Erase::Free).unwrap();
    let alone = layer.alone().unwrap();
    assert_eq!([0, 2, 3].map(|block| place(&layer, block)), [4, 6, 7]);
    // What was freed is free when alone: all that was published is committed.
    assert!(!layer.move_block(&alone, 0, 4 * MIB).unwrap());
    assert!(!layer.move_block(&alone, 1, 100 * MIB).unwrap(), "it is not in the file");
    assert!(layer.move_block(&alone, 3, 7 * MIB).unwrap());
    layer.write_all_back(&alone).unwrap();
    drop(alone);
    layer.close().unwrap();
    assert_eq!(file.len().unwrap(), 7 * MIB);
    let layer = open(&file);
    assert_eq!([0, 2, 3].map(|block| place(&layer, block)), [4, 6, 5]);
    let mut found = [0; 5002];
    layer.read(3 * MIB + 4095, &mut found).unwrap();
    assert_eq!((found[0], found[1], found[5000], found[5001]), (0, 4, 4, 0));
    // The old bytes of its new place do not show.
    layer.read(3 * MIB + 9096, &mut found).unwrap();
    assert_eq!(found, [0; 5002]);
}

#[test]
fn sector_bitmaps_move_with_what_they_say() {
    let file = made(true);
    let layer = open(&file);
    for block in 0..3 {
        layer.write(block * MIB + 512, &[9; 512]).unwrap();
    }
    let bitmap = |layer: &VhdxLayer| layer.state().bitmap(0, layer.file_len()).unwrap().unwrap() / MIB;
    assert_eq!(bitmap(&layer), 5);
    layer.erase(0, MIB, Erase::Reveal).unwrap();
    let alone = layer.alone().unwrap();
    assert!(layer.move_bitmap(&alone, 2, 5 * MIB).unwrap());
    layer.write_all_back(&alone).unwrap();
    drop(alone);
    // Its old place is somebody else's, whatever it held.
    layer.write(5 * MIB, &[5; MIB as usize]).unwrap();
    assert_eq!(place(&layer, 5), 5);
    layer.close().unwrap();
    let layer = open(&file);
    assert_eq!(bitmap(&layer), 4);
    for (block, kind) in [(0, Kind::Hole), (1, Kind::Data), (2, Kind::Data)] {
        let found = layer.extent(block * MIB + 512, MIB - 512).unwrap();
        assert_eq!((found.kind, found.len), (kind, if block == 0 { MIB - 512 } else { 512 }));
        assert_eq!(layer.extent(block * MIB, 512).unwrap().kind, Kind::Hole);
    }
}

#[test]
fn sectors_and_state_change_in_one_step() {
    let file = made(false);
    let layer = open(&file);
    layer.write(0, &[1; 512]).unwrap();
    let alone = layer.alone().unwrap();
    // Room behind all that is in use reads zero, and nobody else gets it.
    let room = layer.reserve(&alone, 2 * MIB).unwrap();
    assert_eq!(room.range, 5 * MIB..7 * MIB);
    let state = layer.state();
    let mut draft = Draft::of(file.as_ref());
    let entry = state.table.offset_of(7);
    draft.write("BAT", entry, &Block::Full(5 * MIB).encode().to_le_bytes()).unwrap();
    layer.change(&alone, &draft.into_sectors(), State::clone(&state)).unwrap();
    assert_eq!(place(&layer, 7), 5);
    drop(alone);
    layer.write(9 * MIB, &[1; 512]).unwrap();
    assert_eq!(place(&layer, 9), 7);
    // What is given up is free behind the next commit.
    let alone = layer.alone().unwrap();
    layer.edit(&alone, &[state.table.set(7, Block::Zero.encode())]).unwrap();
    layer.give_up(&alone, 5 * MIB..7 * MIB);
    layer.write_all_back(&alone).unwrap();
    drop(alone);
    for block in [1, 2] {
        layer.write(block * MIB, &[1; 512]).unwrap();
    }
    assert_eq!([1, 2].map(|block| place(&layer, block)), [5, 6]);
    layer.close().unwrap();
    assert_eq!(file.len().unwrap(), 8 * MIB);
}

/// Moves the BAT, and block 9 to where it was.
fn put_block_where_the_bat_was(layer: &VhdxLayer, alone: &Alone<'_>) {
    let old = layer.state().regions.bat.offset;
    layer.grow(alone, 140_000 * MIB, Prealloc::Off, 0).unwrap();
    layer.write_all_back(alone).unwrap();
    assert!(layer.move_block(alone, 9, u64::MAX).unwrap());
    layer.write_all_back(alone).unwrap();
    assert_eq!(place(layer, 9) * MIB, old);
}

#[test]
fn what_was_a_bat_is_not_taken_for_one() {
    let file = made(false);
    let layer = open(&file);
    // As a BAT, the last one would say that blocks are zero.
    layer.write(0, &[1; 9 << 20]).unwrap();
    layer.write(9 * MIB, &2u64.to_le_bytes().repeat(1 << 17)).unwrap();
    let alone = layer.alone().unwrap();
    std::thread::scope(|scope| {
        let erased = scope.spawn(|| layer.erase(0, 9 * MIB, Erase::Free).unwrap());
        // It waits for the first block then.
        std::thread::sleep(Duration::from_millis(100));
        put_block_where_the_bat_was(&layer, &alone);
        drop(alone);
        assert_eq!(erased.join().unwrap(), 9 * MIB);
    });
    for block in 0..9 {
        assert_eq!(place(&layer, block), 0, "{block}");
    }
}

#[test]
fn who_asks_what_is_allocated_may_change_it() {
    let file = made(false);
    let layer = open(&file);
    layer.write(0, &[255; 12 << 20]).unwrap();
    let mut seen = 0;
    let see = &mut |range: Range<u64>, _| {
        if seen == 0 {
            put_block_where_the_bat_was(&layer, &layer.alone().unwrap());
        }
        seen += range.end - range.start;
        Ok(())
    };
    layer.allocated(see).unwrap();
    assert_eq!(seen, 12 * MIB);
}
