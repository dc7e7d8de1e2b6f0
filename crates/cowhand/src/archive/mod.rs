//! Backup archives: several disks in one file, packed or not, read and written from front to back.

mod input;
