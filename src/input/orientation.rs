//! Reads the orientation of a picture from its metadata: from the EXIF tag Orientation or, if EXIF data has no such
//! tag, from `tiff:Orientation` in the XMP data. Pillow's `ImageOps.exif_transpose`, which transformers' `load_image`
//! calls, does the same. Each format finds its own metadata ([`super::format::PictureFormat::metadata`]); `turn`
//! applies the orientation.
//!
//! Sources: `Image.getexif`, `Exif.load` and `ImageFileDirectory_v2.load` of Pillow 13. If Pillow raises an error on
//! broken metadata, the picture stays as stored.

use std::borrow::Cow;

use image::metadata::Orientation;

/// Number of the EXIF tag Orientation.
const ORIENTATION: u16 = 0x0112;
/// Prefix of EXIF data; it may be absent or repeated.
const EXIF_PREFIX: &[u8] = b"Exif\0\0";

/// The parts of a file's metadata that may contain its orientation.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct OrientationMetadata<'a> {
    /// A TIFF structure, with or without the prefix `Exif\0\0`.
    pub(super) exif: Option<Cow<'a, [u8]>>,
    /// XMP data: RDF in XML.
    pub(super) xmp: Option<Cow<'a, [u8]>>,
}

impl OrientationMetadata<'_> {
    /// Returns the orientation; `NoTransforms` if neither EXIF nor XMP data contains one.
    pub(super) fn orientation(&self) -> Orientation {
        let tag = self.exif.as_deref().map_or(Tag::Absent, exif_orientation);
        let code = match tag {
            Tag::Value(code) => Some(code),
            Tag::Unusable => None,
            Tag::Absent => self.xmp.as_deref().and_then(xmp_orientation),
        };
        code.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms)
    }
}

/// What the EXIF data says about the orientation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    Absent,
    /// Present, but not a valid orientation. XMP data is not consulted in this case.
    Unusable,
    Value(u8),
}

/// Reads the orientation from the first directory (IFD) of a TIFF structure. Reads each entry once.
fn exif_orientation(mut data: &[u8]) -> Tag {
    while let Some(rest) = data.strip_prefix(EXIF_PREFIX) {
        data = rest;
    }
    if data.is_empty() {
        return Tag::Absent;
    }
    // Pillow raises an error on a damaged TIFF header. For a JPEG, Pillow has recorded before this error that EXIF data
    // was read, so it does not look at the XMP data.
    let Some(order) = ByteOrder::of(data) else { return Tag::Unusable };
    let Some(start) = order.u32(data, 4) else { return Tag::Unusable };
    let start = start as usize;
    let count = order.u16(data, start).unwrap_or(0);
    // Total size so far, in bytes, of the values that are stored outside their entries.
    let mut value_bytes = 0;
    for index in 0..usize::from(count) {
        let entry = start + 2 + index * 12;
        let Some(entry) = data.get(entry..).and_then(|data| data.first_chunk::<12>()) else {
            break;
        };
        match read_entry(data, entry, order, &mut value_bytes) {
            IfdEntry::Orientation(tag) => return tag,
            IfdEntry::Other => {}
            IfdEntry::Cut => break,
        }
    }
    Tag::Absent
}

enum IfdEntry {
    Orientation(Tag),
    Other,
    /// The values of the entry lie beyond the end of the data. Pillow reads no further entries.
    Cut,
}

fn read_entry(data: &[u8], entry: &[u8; 12], order: ByteOrder, value_bytes: &mut u64) -> IfdEntry {
    let (tag, kind) = (order.u16(entry, 0), order.u16(entry, 2).unwrap_or(0));
    let Some(unit) = unit_size(kind) else { return IfdEntry::Other };
    let size = u64::from(order.u32(entry, 4).unwrap_or(0)) * unit;
    let values = if size > 4 {
        *value_bytes += size;
        // With this entry, `value_bytes` exceeds the size of the data. Pillow skips such an entry.
        if *value_bytes > data.len() as u64 {
            return IfdEntry::Other;
        }
        let start = order.u32(entry, 8).unwrap_or(0) as usize;
        let end = usize::try_from(size).ok().and_then(|size| start.checked_add(size));
        match end.and_then(|end| data.get(start..end)) {
            Some(values) => values,
            None => return IfdEntry::Cut,
        }
    } else {
        &entry[8..8 + size as usize]
    };
    if values.is_empty() || tag != Some(ORIENTATION) {
        return IfdEntry::Other;
    }
    let value = first_value(values, kind, order);
    IfdEntry::Orientation(
        value.filter(|value| (1..=8).contains(value)).map_or(Tag::Unusable, Tag::Value),
    )
}

/// Returns the size in bytes of one value of a TIFF type; `None` for types that Pillow skips.
fn unit_size(kind: u16) -> Option<u64> {
    match kind {
        1 | 2 | 6 | 7 => Some(1),
        3 | 8 => Some(2),
        4 | 9 | 11 | 13 => Some(4),
        5 | 10 | 12 | 16 => Some(8),
        _ => None,
    }
}

/// Returns the first value, if it is a number from 0 to 255. Values of the types BYTE, ASCII and UNDEFINED give `None`,
/// because Pillow returns them as `bytes` or `str`, not as numbers.
fn first_value(values: &[u8], kind: u16, order: ByteOrder) -> Option<u8> {
    let ratio = |top: i64, bottom: i64| (bottom != 0 && top % bottom == 0).then(|| top / bottom);
    let signed = |value: u32| i64::from(value.cast_signed());
    let whole = |number: f64| (0.0..=255.0).contains(&number).then_some(number);
    match kind {
        6 => values.first().copied(),
        3 | 8 => order.u16(values, 0)?.try_into().ok(),
        4 | 9 | 13 => order.u32(values, 0)?.try_into().ok(),
        5 | 10 => {
            let (top, bottom) = (order.u32(values, 0)?, order.u32(values, 4)?);
            let ratio = if kind == 5 {
                ratio(top.into(), bottom.into())
            } else {
                ratio(signed(top), signed(bottom))
            };
            ratio?.try_into().ok()
        }
        11 => exact(whole(f64::from(f32::from_bits(order.u32(values, 0)?)))?),
        12 => exact(whole(f64::from_bits(order.u64(values, 0)?))?),
        16 => order.u64(values, 0)?.try_into().ok(),
        _ => None,
    }
}

fn exact(number: f64) -> Option<u8> {
    (0..=255_u8).find(|&candidate| (f64::from(candidate) - number).abs() == 0.0)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ByteOrder {
    Little,
    Big,
}

impl ByteOrder {
    /// Returns the byte order from the first bytes of a TIFF structure. Accepts headers whose second half has the wrong
    /// byte order, since they occur in practice.
    fn of(data: &[u8]) -> Option<Self> {
        match data.first_chunk()? {
            b"II\x2a\0" | b"II\0\x2a" => Some(Self::Little),
            b"MM\0\x2a" | b"MM\x2a\0" | b"MM\0\x2b" => Some(Self::Big),
            _ => None,
        }
    }

    fn u16(self, data: &[u8], at: usize) -> Option<u16> {
        let bytes = *data.get(at..)?.first_chunk()?;
        Some(if self == Self::Big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }

    fn u32(self, data: &[u8], at: usize) -> Option<u32> {
        let bytes = *data.get(at..)?.first_chunk()?;
        Some(if self == Self::Big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    fn u64(self, data: &[u8], at: usize) -> Option<u64> {
        let bytes = *data.get(at..)?.first_chunk()?;
        Some(if self == Self::Big { u64::from_be_bytes(bytes) } else { u64::from_le_bytes(bytes) })
    }
}

/// Returns the digit in the first text of the form `tiff:Orientation="6"` or `tiff:Orientation>6`.
fn xmp_orientation(xmp: &[u8]) -> Option<u8> {
    const NAME: &[u8] = b"tiff:Orientation";
    let mut rest = xmp;
    loop {
        let at = rest.windows(NAME.len()).position(|window| window == NAME)?;
        rest = &rest[at + NAME.len()..];
        if let [b'=', b'"', digit @ b'0'..=b'9', ..] | [b'>', digit @ b'0'..=b'9', ..] = rest {
            return Some(digit - b'0');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a TIFF structure whose only entry is the orientation.
    fn tiff(big: bool, kind: u16, count: u32, value: [u8; 4]) -> Vec<u8> {
        let u16 = |value: u16| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let u32 = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let head: &[u8] = if big { b"MM\0\x2a" } else { b"II\x2a\0" };
        let parts: [&[u8]; 7] =
            [head, &u32(8), &u16(1), &u16(ORIENTATION), &u16(kind), &u32(count), &value];
        parts.concat()
    }

    #[test]
    fn every_type_of_number_counts() {
        let cases: [(u16, u32, [u8; 4], Tag); 8] = [
            (3, 1, [0, 6, 0, 0], Tag::Value(6)),
            (3, 2, [0, 6, 0, 3], Tag::Value(6)),
            (4, 1, [0, 0, 0, 6], Tag::Value(6)),
            (9, 1, [0, 0, 0, 6], Tag::Value(6)),
            (6, 1, [6, 0, 0, 0], Tag::Value(6)),
            (1, 1, [6, 0, 0, 0], Tag::Unusable),
            (3, 1, [0, 9, 0, 0], Tag::Unusable),
            (3, 0, [0, 6, 0, 0], Tag::Absent),
        ];
        for (kind, count, value, expected) in cases {
            assert_eq!(exif_orientation(&tiff(true, kind, count, value)), expected, "{kind}");
        }
        assert_eq!(exif_orientation(&tiff(false, 3, 1, [6, 0, 0, 0])), Tag::Value(6));
        assert_eq!(exif_orientation(&tiff(true, 11, 1, 6_f32.to_be_bytes())), Tag::Value(6));
        let ratio = [tiff(true, 5, 1, [0, 0, 0, 22]), b"\0\0\0\x0c\0\0\0\x02".to_vec()].concat();
        assert_eq!(exif_orientation(&ratio), Tag::Value(6));
    }

    #[test]
    fn a_prefix_may_be_repeated_any_number_of_times() {
        let data = tiff(true, 3, 1, [0, 8, 0, 0]);
        for times in 0..3 {
            assert_eq!(
                exif_orientation(&[EXIF_PREFIX.repeat(times), data.clone()].concat()),
                Tag::Value(8)
            );
        }
    }

    #[test]
    fn hostile_structures_end() {
        for data in [&b"II"[..], b"II\x2a\0"] {
            assert_eq!(exif_orientation(data), Tag::Unusable);
        }
        for data in [&b""[..], b"II\x2a\0\xff\xff\xff\xff", b"MM\0\x2a\0\0\0\x08\xff\xff"] {
            assert_eq!(exif_orientation(data), Tag::Absent);
        }
        // An entry that declares 4,294,967,295 values, followed by a valid entry.
        let mut data = tiff(true, 2, u32::MAX, [0; 4]);
        (data[9], data[11]) = (2, 0x0e);
        data.extend(&tiff(true, 3, 1, [0, 6, 0, 0])[10..]);
        assert_eq!(exif_orientation(&data), Tag::Value(6));
        // An entry whose eight values lie beyond the end, so no further entry is read.
        data[14..22].copy_from_slice(&[0, 0, 0, 8, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(exif_orientation(&data), Tag::Absent);
    }

    #[test]
    fn xmp_is_searched_for_the_first_digit() {
        assert_eq!(xmp_orientation(b"<a tiff:Orientation=\"3\"/>"), Some(3));
        assert_eq!(
            xmp_orientation(b"tiff:Orientation='3' <tiff:Orientation>6</tiff:Orientation>"),
            Some(6)
        );
        assert_eq!(xmp_orientation(b"exif:Orientation=\"3\""), None);
    }
}
