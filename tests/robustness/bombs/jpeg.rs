//! JPEG files that promise much and hold little.

use super::{Bomb, decoded, image, too_large, undecodable};

fn segment(marker: u8, data: &[u8]) -> Vec<u8> {
    [&[0xff, marker][..], &(data.len() as u16 + 2).to_be_bytes(), data].concat()
}

/// Everything before the first scan. The only DC code (0) is "no difference", the only AC code (0) `ac`; so a scan may
/// be empty: the zeros that decoders put behind its end are blocks.
fn head(frame: u8, (width, height): (u16, u16), components: u8, ac: u8) -> Vec<u8> {
    let sides = [height.to_be_bytes(), width.to_be_bytes()].concat();
    let listed: Vec<u8> = (1..=components).flat_map(|id| [id, 0x11, 0]).collect();
    let one_code = |class: u8, symbol: u8| {
        let mut counts = [0; 16];
        counts[0] = 1;
        [&[class][..], &counts, &[symbol]].concat()
    };
    [
        b"\xff\xd8".to_vec(),
        segment(0xdb, &[&[0][..], &[1; 64]].concat()),
        segment(frame, &[&[8][..], &sides, &[components], &listed].concat()),
        segment(0xc4, &one_code(0x00, 0)),
        segment(0xc4, &one_code(0x10, ac)),
    ]
    .concat()
}

/// The head of a scan of these components: spectral selection and approximation as given.
fn scan(components: &[u8], [start, end, approximation]: [u8; 3]) -> Vec<u8> {
    let listed: Vec<u8> = components.iter().flat_map(|&id| [id, 0]).collect();
    let count = components.len() as u8;
    segment(0xda, &[&[count][..], &listed, &[start, end, approximation]].concat())
}

const END: &[u8] = b"\xff\xd9";
const SEQUENTIAL: [u8; 3] = [0, 63, 0];

/// One frame of three components, a first scan of all, then so many refinements that change nothing.
pub(crate) fn progressive(sides: (u16, u16), refinements: usize) -> Vec<u8> {
    // 0xe0: no coefficient in this and the next 16,383 blocks.
    let first = [scan(&[1, 2, 3], [0, 0, 0]), vec![0; 8]].concat();
    let refinement = [scan(&[1], [1, 63, 0x10]), vec![0; 4]].concat();
    [head(0xc2, sides, 3, 0xe0), first, refinement.repeat(refinements), END.to_vec()].concat()
}

/// Arithmetic coding in one scan: behind the last byte a decoder goes on with zeros, which code something else for each
/// state of its statistics.
pub(crate) fn arithmetic(sides: (u16, u16), bytes: usize) -> Vec<u8> {
    let scan = scan(&[1, 2, 3], SEQUENTIAL);
    [head(0xc9, sides, 3, 0), scan, vec![0x5a; bytes], END.to_vec()].concat()
}

/// The same with refinements that change nothing.
fn arithmetic_scans(sides: (u16, u16), refinements: usize) -> Vec<u8> {
    let first = scan(&[1, 2, 3], [0, 0, 0]);
    let refinement = scan(&[1], [1, 63, 0x10]);
    [head(0xca, sides, 3, 0), first, refinement.repeat(refinements), END.to_vec()].concat()
}

/// Lossless scans of one component without data: all samples are predicted, again and again.
fn lossless_scans(sides: (u16, u16), scans: usize) -> Vec<u8> {
    let others = [scan(&[2], [1, 0, 0]), scan(&[3], [1, 0, 0])].concat();
    let repeated = scan(&[1], [1, 0, 0]).repeat(scans);
    [head(0xc3, sides, 3, 0), repeated, others, END.to_vec()].concat()
}

/// Four components whose coefficients are all kept: the most memory that a file of this size can ask for.
fn four(sides: (u16, u16)) -> Vec<u8> {
    let first = [scan(&[1, 2, 3, 4], [0, 0, 0]), vec![0; 8]].concat();
    [head(0xc2, sides, 4, 0xe0), first, END.to_vec()].concat()
}

/// A small frame inside a segment, in front of the one that counts: a walk over markers that takes TEM, SOI or restart
/// markers for the beginning of a segment would believe the small one, and let hundreds of scans pass.
fn hidden_frame(sides: (u16, u16)) -> Vec<u8> {
    let small =
        [b"\xff\x01\xff\xd8\xff\xd0".to_vec(), head(0xc0, (8, 8), 1, 0)[2..].to_vec()].concat();
    let file = progressive(sides, 98);
    [&file[..2], &segment(0xe5, &small), &file[2..]].concat()
}

pub(super) fn bombs() -> Vec<Bomb> {
    let cap = (16_384, 3000);
    let grey = |sides, before: &[u8], data: &[u8]| {
        [
            &head(0xc0, sides, 1, 0)[..2],
            before,
            &head(0xc0, sides, 1, 0)[2..],
            &scan(&[1], SEQUENTIAL),
            data,
            END,
        ]
        .concat()
    };
    let apart = |scans: usize| {
        [head(0xc0, cap, 3, 0), scan(&[1], SEQUENTIAL).repeat(scans), END.to_vec()].concat()
    };
    let restarts: Vec<u8> =
        (0..2_000_000).flat_map(|index: u32| [0xff, 0xd0 + (index % 8) as u8]).collect();
    let interval = segment(0xdd, &[0, 1]);
    let profile = segment(0xe2, b"ICC_PROFILE\0\x01\xff bomb");
    vec![
        image("jpeg 65,500 a side", grey((65_500, 65_500), b"", b""), too_large()),
        image("jpeg one side too long", grey((16_385, 1), b"", b""), too_large()),
        image("jpeg without a height", grey((100, 0), b"", b""), undecodable()),
        image("jpeg 16,384 x 3,000 without data", grey(cap, b"", b""), &[200, 422]),
        image("jpeg 1,000 scans of a small picture", progressive((16, 16), 1000), &[200, 422]),
        image("jpeg 90 scans of a small picture", progressive((16, 16), 90), &[200, 422]),
        image("jpeg 90 scans at the pixel cap", progressive(cap, 90), undecodable()),
        image("jpeg 12 scans at the pixel cap", progressive(cap, 12), &[200, 422]),
        image("jpeg 900,000 scans of one component", apart(900_000), undecodable()),
        image(
            "jpeg three scans apart at the pixel cap",
            [
                head(0xc0, cap, 3, 0),
                scan(&[1], SEQUENTIAL),
                scan(&[2], SEQUENTIAL),
                scan(&[3], SEQUENTIAL),
                END.to_vec(),
            ]
            .concat(),
            &[200, 422],
        ),
        image("jpeg 2,000,000 restarts", grey(cap, &interval, &restarts), &[200, 422]),
        image("jpeg 8 MiB of fill bytes", grey((8, 8), &vec![0xff; 8 << 20], b""), &[200, 422]),
        image(
            "jpeg 200,000 comments",
            grey((8, 8), &segment(0xfe, b"bomb").repeat(200_000), b""),
            &[200, 422],
        ),
        image(
            "jpeg 100,000 pieces of a profile",
            grey((8, 8), &profile.repeat(100_000), b""),
            &[200, 422],
        ),
        image(
            "jpeg in jpeg in jpeg",
            (0..1000).fold(b"\xff\xd8".to_vec(), |file, _| {
                [file, segment(0xe1, b"\xff\xd8\xff\xd9\xff\xd8")].concat()
            }),
            undecodable(),
        ),
        image("jpeg arithmetic without data at the pixel cap", arithmetic(cap, 0), &[200, 422]),
        image("jpeg arithmetic with a byte at the pixel cap", arithmetic(cap, 1), &[200, 422]),
        image(
            "jpeg 90 arithmetic scans at the pixel cap",
            arithmetic_scans(cap, 90),
            undecodable(),
        ),
        image("jpeg 12 arithmetic scans at the pixel cap", arithmetic_scans(cap, 12), &[200, 422]),
        image("jpeg four progressive components at the pixel cap", four(cap), &[200, 422]),
        image("jpeg another frame hidden behind markers", hidden_frame(cap), undecodable()),
        image("jpeg 44 lossless scans at the pixel cap", lossless_scans(cap, 44), undecodable()),
        image(
            "jpeg 700,000 scans of a small picture",
            progressive((16, 16), 700_000),
            undecodable(),
        ),
        image("jpeg one pixel", grey((1, 1), b"", b"\0"), decoded()),
        image("jpeg 10 MiB of start markers", b"\xff\xd8".repeat(5 << 20), undecodable()),
    ]
}
