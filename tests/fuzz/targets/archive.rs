//! Zip archives as torch.save writes them, and worse ones.

/// One entry of an archive.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a str,
    pub(crate) content: &'a [u8],
    /// 0 is stored, 8 is deflated.
    pub(crate) method: u16,
    /// What the directory says of its size.
    pub(crate) size: u32,
}

impl<'a> Entry<'a> {
    pub(crate) fn stored(name: &'a str, content: &'a [u8]) -> Self {
        Self { name, content, method: 0, size: content.len() as u32 }
    }
}

/// An archive of these entries, without the 64-bit records.
pub(crate) fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        let offset = bytes.len() as u32;
        // Version, flags, method, time, date, checksum (which nobody compares), two sizes, two lengths.
        let common = [
            &[20, 0, 0, 0][..],
            &entry.method.to_le_bytes(),
            &[0; 8],
            &(entry.content.len() as u32).to_le_bytes(),
            &entry.size.to_le_bytes(),
            &(entry.name.len() as u16).to_le_bytes(),
            &[0, 0],
        ]
        .concat();
        bytes.extend([b"PK\x03\x04", &common[..], entry.name.as_bytes(), entry.content].concat());
        directory.extend([b"PK\x01\x02\x14\x00", &common[..], &[0; 10]].concat());
        directory.extend([&offset.to_le_bytes(), entry.name.as_bytes()].concat());
    }
    let count = (entries.len() as u16).to_le_bytes();
    let (start, size) = (bytes.len() as u32, directory.len() as u32);
    bytes.extend(directory);
    bytes.extend([&b"PK\x05\x06\0\0\0\0"[..], &count, &count].concat());
    bytes.extend([&size.to_le_bytes()[..], &start.to_le_bytes(), &[0, 0]].concat());
    bytes
}

/// A file of torch with this pickle and one entry of values.
pub(crate) fn with_pickle(pickle: &[u8], values: &[u8]) -> Vec<u8> {
    archive(&[Entry::stored("m/data.pkl", pickle), Entry::stored("m/data/0", values)])
}
