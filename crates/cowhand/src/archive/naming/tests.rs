//! Names and lines, as Proxmox's own backups have them.

use cowhand_core::ArchivedDisk;

use super::*;

/// An archive of these disks, and of a configuration that may be called anything.
fn manifest(config: (&str, &str), disks: &[&str]) -> Manifest {
    let disk = |name: &&str| ArchivedDisk { name: (*name).to_owned(), size: 512, ..ArchivedDisk::default() };
    let (name, data) = config;
    Manifest {
        configs: vec![ConfigFile { name: name.to_owned(), data: data.as_bytes().to_vec() }],
        disks: disks.iter().map(disk).collect(),
        ..Manifest::default()
    }
}

const CONF: &str = "\
boot: order=scsi0
scsi0: local-lvm:vm-100-disk-0,size=32G
virtio1:  nfs:100/vm-100-disk-1.qcow2,discard=on,size=1G
sata2: file=dir:100/x.raw,format=vmdk
efidisk0: local-lvm:vm-100-disk-2,efitype=4m,size=4M
tpmstate0: local-lvm:vm-100-disk-3,size=4M,version=v2.0
ide0: /dev/disk/by-id/ata-1
#vzdump#old
#qmdump#map:scsi0:drive-scsi0:old:qcow2:
lock: backup
parent: snap
unused0: local-lvm:vm-100-disk-9
name: unusual

[snap]
scsi0: elsewhere:vm-100-disk-0
";

const DISKS: [&str; 6] =
    ["drive-scsi0", "drive-virtio1", "drive-sata2", "drive-efidisk0", "drive-tpmstate0-backup", "drive-ide0"];

#[test]
fn a_line_is_made_for_each_disk() {
    let mut manifest = manifest((CONFIG, CONF), &DISKS);
    let given = [Mapped::parse("sata2=ceph").unwrap(), Mapped::parse("ide0=local:qcow2").unwrap()];
    add_map(&mut manifest, &given).unwrap();
    let made = String::from_utf8(manifest.configs[0].data.clone()).unwrap();
    assert_eq!(
        made,
        "\
boot: order=scsi0
scsi0: local-lvm:vm-100-disk-0,size=32G
virtio1:  nfs:100/vm-100-disk-1.qcow2,discard=on,size=1G
sata2: file=dir:100/x.raw,format=vmdk
efidisk0: local-lvm:vm-100-disk-2,efitype=4m,size=4M
tpmstate0: local-lvm:vm-100-disk-3,size=4M,version=v2.0
ide0: /dev/disk/by-id/ata-1
name: unusual

#qmdump#map:scsi0:drive-scsi0:local-lvm:raw:
#qmdump#map:virtio1:drive-virtio1:nfs:qcow2:
#qmdump#map:sata2:drive-sata2:ceph:vmdk:
#qmdump#map:efidisk0:drive-efidisk0:local-lvm:raw:
#qmdump#map:tpmstate0:drive-tpmstate0-backup:local-lvm:raw:
#qmdump#map:ide0:drive-ide0:local:qcow2:
"
    );
    let name = Path::new("/dump/vzdump-qemu-100-2026_11_21-20_30_00.vma.zst");
    check_restorable(Some(name), &manifest).unwrap();
    check_restorable(None, &manifest).unwrap();
    // Once more changes nothing.
    let before = manifest.clone();
    add_map(&mut manifest, &given).unwrap();
    assert_eq!(manifest, before);
}

#[test]
fn a_configuration_of_a_machines_number_is_that_machines() {
    let mut numbered = manifest(("100.conf", "scsi0: a:b\n"), &["drive-scsi0"]);
    numbered.configs.push(ConfigFile { name: "100.fw".to_owned(), data: Vec::new() });
    add_map(&mut numbered, &[]).unwrap();
    let names: Vec<&str> = numbered.configs.iter().map(|config| config.name.as_str()).collect();
    assert_eq!(names, [CONFIG, FIREWALL]);
    check_restorable(None, &numbered).unwrap();
    // Of several, nobody knows which.
    let mut several = manifest(("100.conf", "scsi0: a:b\n"), &["drive-scsi0"]);
    several.configs.push(ConfigFile { name: "101.conf".to_owned(), data: Vec::new() });
    assert!(add_map(&mut several, &[]).is_err());
}

#[test]
fn what_proxmox_would_stumble_over_is_said() {
    let line = "#qmdump#map:scsi0:drive-scsi0:s:raw:\n";
    let conf = |text: &str| format!("scsi0: a:b\nscsi1: a:c\n{text}");
    for (config, disks, part) in [
        (("x", conf(line)), &["drive-scsi0"][..], "without a qemu-server.conf"),
        ((CONFIG, conf("")), &["drive-scsi0"], "no line that says where"),
        ((CONFIG, conf(line)), &["drive-scsi0", "drive-scsi1"], "'drive-scsi1' belongs"),
        ((CONFIG, conf(line)), &["disk0"], "named after no drive"),
        ((CONFIG, conf(line)), &["drive-scsi"], "named after no drive"),
        ((CONFIG, conf(line)), &["drive-net0"], "named after no drive"),
        ((CONFIG, conf(&line.repeat(2))), &["drive-scsi0"], "another line"),
        ((CONFIG, conf("#qmdump#map:scsi0:drive-scsi0:s:raw\n")), &["drive-scsi0"], "not of the form"),
        ((CONFIG, conf("#qmdump#map:scsi0:drive-scsi0:s raw::\n")), &["drive-scsi0"], "not of the form"),
        ((CONFIG, conf("#qmdump#map:scsi1:drive-scsi1:s:raw:\n")), &["drive-scsi0"], "no such disk"),
        ((CONFIG, line.to_owned()), &["drive-scsi0"], "attached to nothing"),
        // Behind a snapshot's head nothing is read.
        ((CONFIG, format!("scsi0: a:b\n[snap]\n{line}")), &["drive-scsi0"], "no line that says where"),
    ] {
        let (name, text) = &config;
        let error = check_restorable(None, &manifest((*name, text.as_str()), disks)).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    let mut manifest = manifest((CONFIG, "memory: 1\n"), &["drive-scsi0"]);
    let error = add_map(&mut manifest, &[]).unwrap_err().to_string();
    assert!(error.contains("has no line 'scsi0: ...'"), "{error}");
    let error = add_map(&mut manifest, &[Mapped::parse("scsi7=a").unwrap()]).unwrap_err().to_string();
    assert!(error.contains("no such disk"), "{error}");
    manifest.configs[0].data = vec![0xff];
    assert!(add_map(&mut manifest, &[]).is_err());
}

#[test]
fn archives_are_named_as_proxmox_names_them() {
    let at = WallClock { year: 2026, month: 1, day: 2, hour: 3, minute: 4, second: 5 };
    let name = |vmid, packing| backup_name(vmid, at, packing);
    assert_eq!(name(100, None).unwrap(), "vzdump-qemu-100-2026_01_02-03_04_05.vma");
    assert_eq!(name(100, Some("none")).unwrap(), "vzdump-qemu-100-2026_01_02-03_04_05.vma");
    for packing in cowhand_packed::packings() {
        let made = name(999_999_999, Some(packing.name())).unwrap();
        assert_eq!(made, format!("vzdump-qemu-999999999-2026_01_02-03_04_05.vma.{}", packing.extension()));
        check_backup_name(&made).unwrap();
    }
    assert!(name(99, None).is_err() && name(1_000_000_000, None).is_err() && name(100, Some("rar")).is_err());
    for wrong in [
        "",
        "backup.vma",
        "vzdump-lxc-100-2026_01_02-03_04_05.vma",
        "vzdump-qemu-99-2026_01_02-03_04_05.vma",
        "vzdump-qemu-+100-2026_01_02-03_04_05.vma",
        "vzdump-qemu-100-2026_13_02-03_04_05.vma",
        "vzdump-qemu-100-2026_01_00-03_04_05.vma",
        "vzdump-qemu-100-2026_01_02-24_04_05.vma",
        "vzdump-qemu-100-2026_01_02-03_04_5.vma",
        "vzdump-qemu-100-2026_01_02-03_04_05",
        "vzdump-qemu-100-2026_01_02-03_04_05.vma.",
        "vzdump-qemu-100-2026_01_02-03_04_05.vma.zip",
        "vzdump-qemu-100-2026_01_02-03_04_05.vmazst",
        "vzdump-qemu-100-2026_01_02-03_04_05.tar",
    ] {
        assert!(check_backup_name(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn places_are_read() {
    let mapped = Mapped::parse("efidisk0=store:qcow2").unwrap();
    assert_eq!((mapped.storage.as_str(), mapped.format.as_deref()), ("store", Some("qcow2")));
    for wrong in ["", "scsi0", "scsi=a", "scsi0=", "scsi0=a:zip", "scsi0=a b", "net0=a", "scsi123=a"] {
        assert!(Mapped::parse(wrong).is_err(), "{wrong}");
    }
}
