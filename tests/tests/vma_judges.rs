//! The judges of VMA judged: what the builder makes the reader takes, and refuses in Proxmox's words what is broken.

use cowhand_tests::{
    VmaDamaged, file_sha256, for_all, samples, vma_bad_extents, vma_bad_headers, vma_bad_memory,
    vma_broken_files, vma_extract, vma_flipped_headers, vma_passed_over, vma_shapes, vma_verify,
};

#[test]
fn every_shape_is_read() {
    for_all(
        &vma_shapes(),
        |file| file.name.to_owned(),
        |file| {
            let built = file.clone().build();
            let found = vma_extract(&mut built.bytes.as_slice(), None).unwrap();
            vma_verify(&mut built.bytes.as_slice()).unwrap();
            assert_eq!(found.len, built.bytes.len() as u64);
            assert_eq!(found.head.devices.len(), file.disks.len());
            for disk in &file.disks {
                match found.disks.get(&disk.id) {
                    Some(found) => disk.content.assert_same(found, "the reader"),
                    None => assert_eq!(
                        found.memory.as_ref(),
                        Some(&disk.content.bytes(0, disk.content.size() as usize))
                    ),
                }
            }
            let mut configs = file.configs.clone();
            configs.sort();
            let configs: Vec<_> = configs.into_iter().map(|(_, name, data)| (name, data)).collect();
            assert_eq!(found.head.configs, configs);
            let rescue = built.rescue(|_| usize::MAX);
            assert!(rescue.missing.is_empty());
            for (id, disk) in &rescue.disks {
                disk.assert_same(&found.disks[id], "what must be rescued");
            }
        },
    );
}

#[test]
fn every_fault_is_said() {
    let all = [
        vma_bad_headers(),
        vma_flipped_headers(),
        vma_bad_extents(),
        vma_bad_memory(),
        vma_broken_files(),
        vma_passed_over(),
    ];
    let check = |case: &VmaDamaged| {
        let found = vma_extract(&mut case.bytes.as_slice(), None);
        let verified = vma_verify(&mut case.bytes.as_slice());
        match &case.says {
            None => drop(found.unwrap()),
            Some(says) => {
                let error = found.map(|_| ()).unwrap_err();
                assert!(error.contains(says.as_str()), "{error}, and not {says}");
                // It knows of nothing that is missing when it verifies.
                let silent = error.starts_with("detected missing cluster");
                assert_eq!(verified.err(), (!silent).then_some(error));
            }
        }
    };
    for_all(&all.concat(), |case| case.name.clone(), check);
}

#[test]
fn the_samples_are_read() {
    for sample in samples() {
        if sample.format != "vma" || sample.path.ends_with(".zst") {
            continue;
        }
        assert_eq!(file_sha256(&sample.file), sample.sha256_file);
        let bytes = std::fs::read(&sample.file).unwrap();
        let found = vma_extract(&mut bytes.as_slice(), None);
        if sample.path.ends_with("none.vma") {
            assert_eq!(found.map(|_| ()).unwrap_err(), "wrong vma header size 12288");
            continue;
        }
        let found = found.unwrap();
        assert!(found.faults.is_empty(), "{:?}", found.faults);
        assert_eq!(found.head.configs[0].0, b"qemu-server.conf");
    }
}
