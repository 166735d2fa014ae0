//! The paged KV cache.

use super::support::*;
use crate::gpu::device::Format;
use crate::gpu::host::HostDevice;
use crate::gpu::kernels::attention::{self, PAGE_TOKENS, PagedKv};

/// New rows and cached tokens of a sequence.
#[derive(Debug, Clone, Copy)]
struct Sequence {
    rows: usize,
    cached: usize,
}

/// Sequences with their cache, of the second of two layers. Each sequence has its pages in a random order.
struct Case {
    format: Format,
    heads: usize,
    head_width: usize,
    sequences: Vec<Sequence>,
    /// `[rows, 3 x width]` of the new rows of all sequences.
    qkv: Vec<f32>,
    /// All pages of both layers.
    pages: Vec<f32>,
    tables: Vec<i32>,
    /// First new row and first table entry of each sequence.
    starts: Vec<(usize, usize)>,
}

impl Case {
    fn new(format: Format, heads: usize, head_width: usize, sequences: &[Sequence]) -> Self {
        let width = heads * head_width;
        let mut numbers = Numbers::new(5);
        let (mut rows, mut entries, mut starts) = (0, 0, Vec::new());
        for sequence in sequences {
            starts.push((rows, entries));
            rows += sequence.rows;
            entries += (sequence.rows + sequence.cached).div_ceil(PAGE_TOKENS);
        }
        let mut tables: Vec<i32> = (0..entries as i32).collect();
        for i in (1..entries).rev() {
            tables.swap(i, numbers.below(i + 1));
        }
        let qkv = random(6, rows * 3 * width);
        let pages = rounded(format, &random(7, entries * 4 * PAGE_TOKENS * width));
        Self {
            format,
            heads,
            head_width,
            sequences: sequences.to_vec(),
            qkv,
            pages,
            tables,
            starts,
        }
    }

    fn width(&self) -> usize {
        self.heads * self.head_width
    }

    fn rows(&self) -> usize {
        self.qkv.len() / (3 * self.width())
    }

    /// Returns where the key of a token starts in the pages. Its value is a page's keys further.
    fn key(&self, sequence: usize, token: usize) -> usize {
        let page = self.tables[self.starts[sequence].1 + token / PAGE_TOKENS] as usize;
        ((page * 2 + 1) * 2 * PAGE_TOKENS + token % PAGE_TOKENS) * self.width()
    }

    /// Appends the new rows and computes their attention. Returns the result and the pages.
    fn run(&self, device: &HostDevice) -> (Vec<f32>, Vec<f32>) {
        let width = self.width();
        let sequences: Vec<i32> = self
            .sequences
            .iter()
            .zip(&self.starts)
            .flat_map(|(of, &(row, entry))| [row, of.rows, of.cached, entry].map(|x| x as i32))
            .collect();
        let pages = upload(device, self.format, &self.pages);
        let (qkv, out) = (
            upload(device, Format::F32, &self.qkv),
            room(device, self.format, self.rows() * width),
        );
        let kv = PagedKv {
            pages: pages.offset(2 * PAGE_TOKENS * width * self.format.bytes()),
            page_stride: 4 * width,
            sequences: upload_ints(device, &sequences),
            tables: upload_ints(device, &self.tables),
            sequence_count: self.sequences.len(),
            most_rows: self.sequences.iter().map(|of| of.rows).max().unwrap_or(0),
            heads: self.heads,
            head_width: self.head_width,
        };
        attention::append_kv(device, self.format, qkv, kv).unwrap();
        attention::paged_attention(device, self.format, qkv, out, kv).unwrap();
        let result = download(device, self.format, out, self.rows() * width);
        let written = download(device, self.format, pages, self.pages.len());
        free(device, [pages, qkv, out]);
        (result, written)
    }

    /// Returns the pages after the new rows were appended.
    fn appended(&self) -> Vec<f32> {
        let (width, mut pages) = (self.width(), self.pages.clone());
        for (i, sequence) in self.sequences.iter().enumerate() {
            for row in 0..sequence.rows {
                let new = &self.qkv[(self.starts[i].0 + row) * 3 * width..][..3 * width];
                let key = self.key(i, sequence.cached + row);
                let value = key + PAGE_TOKENS * width;
                pages[key..key + width]
                    .copy_from_slice(&rounded(self.format, &new[width..2 * width]));
                pages[value..value + width]
                    .copy_from_slice(&rounded(self.format, &new[2 * width..]));
            }
        }
        pages
    }

    fn check(&self, device: &HostDevice) {
        let (width, what) = (self.width(), (self.format, self.head_width, &self.sequences));
        let (actual, written) = in_every_order(device, what, || self.run(device));
        let pages = self.appended();
        assert_eq!(written, pages, "{what:?}");
        let mut expected = Vec::new();
        for (i, sequence) in self.sequences.iter().enumerate() {
            for row in 0..sequence.rows {
                for head in 0..self.heads {
                    let column = head * self.head_width;
                    let query = &self.qkv[(self.starts[i].0 + row) * 3 * width + column..]
                        [..self.head_width];
                    let keys: Vec<usize> = (0..=sequence.cached + row)
                        .map(|token| self.key(i, token) + column)
                        .collect();
                    let product = |at: usize| -> f64 {
                        query
                            .iter()
                            .zip(&pages[at..])
                            .map(|(&q, &k)| f64::from(q) * f64::from(k))
                            .sum()
                    };
                    let scores: Vec<f64> = keys
                        .iter()
                        .map(|&at| product(at) / (self.head_width as f64).sqrt())
                        .collect();
                    let weights = softmax(&scores);
                    expected.extend((0..self.head_width).map(|d| -> f64 {
                        let values =
                            keys.iter().map(|at| f64::from(pages[at + PAGE_TOKENS * width + d]));
                        values.zip(&weights).map(|(value, weight)| value * weight).sum()
                    }));
                }
            }
        }
        assert_close(&actual, &expected, unit(self.format) + 2e-6, what);
    }
}

/// Sequences of all lengths around a page and around what a block of threads takes in one turn.
fn ragged() -> Vec<Sequence> {
    let mut sequences: Vec<Sequence> =
        [0, 1, 6, 7, 14, 15, 16, 17, 30, 31, 32, 33, 63, 64, 127, 128, 130]
            .map(|cached| Sequence { rows: 1, cached })
            .into();
    // Padding, prefills, and several rows after cached tokens.
    sequences.extend(
        [(0, 0), (5, 0), (17, 0), (3, 14), (0, 20), (2, 40)]
            .map(|(rows, cached)| Sequence { rows, cached }),
    );
    sequences
}

#[test]
fn paged_attention_of_ragged_sequences_agrees_with_its_twin() {
    let Some(device) = HostDevice::try_new() else { return };
    for format in FORMATS {
        for (heads, head_width) in
            [(1, 1), (2, 4), (1, 8), (3, 9), (2, 15), (2, 16), (1, 24), (1, 65), (1, 128)]
        {
            Case::new(format, heads, head_width, &ragged()).check(&device);
        }
    }
}

#[test]
fn paged_attention_agrees_with_its_twin_at_the_size_of_blip() {
    let Some(device) = HostDevice::try_new() else { return };
    for format in FORMATS {
        let sequences =
            [(1, 4), (1, 37), (0, 0), (4, 0)].map(|(rows, cached)| Sequence { rows, cached });
        Case::new(format, 12, 64, &sequences).check(&device);
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let Some(device) = HostDevice::try_new() else { return };
    for format in FORMATS {
        let sequences = [3, 40].map(|cached| Sequence { rows: 1, cached });
        let mut case = Case::new(format, 1, 8, &sequences);
        case.qkv.iter_mut().for_each(|x| *x *= 300.0);
        let (actual, _) = case.run(&device);
        assert!(actual.iter().all(|x| x.is_finite()), "{format:?}: {actual:?}");
    }
}

#[test]
fn paged_attention_of_a_row_does_not_depend_on_its_batch() {
    for device in devices() {
        for format in FORMATS {
            let together = Case::new(format, 2, 16, &ragged());
            let (all, _) = together.run(&device);
            for (i, sequence) in ragged().into_iter().enumerate() {
                let mut alone = Case::new(format, 2, 16, &[sequence]);
                let (first, entries) = (
                    together.starts[i].0 * 32,
                    (sequence.rows + sequence.cached).div_ceil(PAGE_TOKENS),
                );
                alone.qkv = together.qkv[first * 3..(first + sequence.rows * 32) * 3].to_vec();
                alone.pages.clone_from(&together.pages);
                alone.tables = together.tables[together.starts[i].1..][..entries].to_vec();
                let (row, _) = alone.run(&device);
                assert_eq!(
                    bits(&row),
                    bits(&all[first..first + row.len()]),
                    "{format:?} {sequence:?}"
                );
            }
        }
    }
}
