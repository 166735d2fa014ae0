//! A product as cuBLASLt takes it. Nothing here calls cuBLASLt.
//!
//! cuBLASLt is column-major: a row-major `[m, n]` is its `n x m`, without any copy. So `out = x w^T` of the rows is
//! `out = w^T x` of the columns, with `w` as a `k x n` that is transposed, and `x` as a `k x m` that is not. The bias
//! then runs along the rows of the result, where the epilogue of cuBLASLt adds it.

use crate::gpu::device::{Address, Format, Product};

/// The largest alignment that cuBLASLt's heuristic distinguishes, and its default.
const LARGEST_ALIGNMENT: u32 = 256;

/// A matrix in column-major order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Matrix {
    pub(super) format: Format,
    pub(super) rows: u64,
    pub(super) columns: u64,
    /// Values from one column to the next.
    pub(super) leading: i64,
    pub(super) address: Address,
}

impl Matrix {
    /// Reads a row-major matrix as the column-major one with the same bytes.
    fn of_rows(format: Format, rows: usize, columns: usize, address: Address) -> Self {
        Self {
            format,
            rows: columns as u64,
            columns: rows as u64,
            leading: i64::try_from(columns).unwrap_or(i64::MAX),
            address,
        }
    }
}

/// A product as cuBLASLt takes it: `d = a^T b + beta c`, then the bias is added to each column of `d`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Columns {
    pub(super) a: Matrix,
    pub(super) b: Matrix,
    /// Has the layout of `d`. If `beta` is 0, it is not read.
    pub(super) c: Matrix,
    pub(super) d: Matrix,
    pub(super) beta: f32,
    /// As many values as `d` has rows, in the format of `d`.
    pub(super) bias: Option<Address>,
}

impl Columns {
    pub(super) fn of(product: &Product) -> Self {
        let Product { format, out_format, m, n, k, .. } = *product;
        Self {
            a: Matrix::of_rows(format, n, k, product.w),
            b: Matrix::of_rows(format, m, k, product.x),
            c: Matrix::of_rows(out_format, m, n, product.residual.unwrap_or(product.out)),
            d: Matrix::of_rows(out_format, m, n, product.out),
            beta: if product.residual.is_some() { 1.0 } else { 0.0 },
            bias: product.bias,
        }
    }
}

/// Everything that the choice of an algorithm depends on. The heuristic does not see `beta`, so a residual changes
/// nothing but the alignment of `c`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct PlanKey {
    format: Format,
    out_format: Format,
    m: usize,
    n: usize,
    k: usize,
    /// Alignment of the addresses of `a`, `b`, `c` and `d`, in bytes.
    pub(super) alignments: [u32; 4],
    bias_alignment: Option<u32>,
}

impl PlanKey {
    pub(super) fn of(product: &Product) -> Self {
        let columns = Columns::of(product);
        Self {
            format: product.format,
            out_format: product.out_format,
            m: product.m,
            n: product.n,
            k: product.k,
            alignments: [columns.a, columns.b, columns.c, columns.d]
                .map(|matrix| alignment(matrix.address)),
            bias_alignment: product.bias.map(alignment),
        }
    }
}

/// Returns the largest power of two, up to [`LARGEST_ALIGNMENT`], of which the address is a multiple.
fn alignment(address: Address) -> u32 {
    1 << address.0.trailing_zeros().min(LARGEST_ALIGNMENT.trailing_zeros())
}

/// Says what is wrong with a product, if it is none that cuBLASLt can compute.
pub(super) fn objection(product: &Product) -> Option<&'static str> {
    let Product { format, out_format, m, n, k, .. } = *product;
    let of_32_bits = |size: usize| i32::try_from(size).is_ok();
    let matrices = [Some(product.x), Some(product.w)];
    let results = [Some(product.out), product.residual, product.bias];
    let aligned = |addresses: &[Option<Address>], format: Format| {
        addresses.iter().flatten().all(|address| address.0.is_multiple_of(format.bytes() as u64))
    };
    if k == 0 {
        Some("k is 0")
    } else if ![m, n, k].into_iter().all(of_32_bits) {
        Some("a size is above 2^31")
    } else if out_format != Format::F32 && out_format != format {
        Some("the result is neither f32 nor in the format of the inputs")
    } else if !aligned(&matrices, format) || !aligned(&results, out_format) {
        Some("an address is not a multiple of the size of its values")
    } else {
        None
    }
}

/// Names a product in messages.
pub(super) fn describe(product: &Product) -> String {
    let Product { format, out_format, m, n, k, .. } = product;
    let and = |given: bool, what| if given { what } else { "" };
    format!(
        "product {out_format:?} [{m}, {n}] = {format:?} [{m}, {k}] x [{n}, {k}]^T{}{}",
        and(product.bias.is_some(), " + bias"),
        and(product.residual.is_some(), " + residual")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(m: usize, n: usize, k: usize) -> Product {
        Product {
            format: Format::Bf16,
            out_format: Format::F32,
            m,
            n,
            k,
            x: Address(0x1000),
            w: Address(0x2000),
            bias: None,
            residual: None,
            out: Address(0x3000),
        }
    }

    /// `d = a^T b + beta c + bias` as the documentation of `cublasLtMatmul` defines it, in column-major order. Addresses
    /// are positions in `memory`.
    fn evaluate(columns: &Columns, memory: &mut [f32]) {
        let position = |matrix: Matrix, row: u64, column: u64| {
            assert!(row < matrix.rows && column < matrix.columns);
            (matrix.address.0 + row + column * matrix.leading.unsigned_abs()) as usize
        };
        let Columns { a, b, c, d, beta, bias } = *columns;
        assert_eq!((a.columns, a.rows, b.columns), (d.rows, b.rows, d.columns));
        assert_eq!((c.rows, c.columns, c.leading), (d.rows, d.columns, d.leading));
        for column in 0..d.columns {
            for row in 0..d.rows {
                let mut sum = 0.0;
                for i in 0..a.rows {
                    sum += memory[position(a, i, row)] * memory[position(b, i, column)];
                }
                if beta != 0.0 {
                    sum += beta * memory[position(c, row, column)];
                }
                sum += bias.map_or(0.0, |bias| memory[(bias.0 + row) as usize]);
                memory[position(d, row, column)] = sum;
            }
        }
    }

    #[test]
    fn descriptors_compute_the_product_of_the_rows() {
        // All numbers are small integers, so sums are exact in any order.
        let memory: Vec<f32> = (0..2_000).map(|i| (i * 7 % 11) as f32 - 5.0).collect();
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (8, 2, 4), (1, 9, 3), (6, 1, 10)] {
            for (has_bias, residual) in [
                (false, None),
                (true, None),
                (false, Some(1_500)),
                (true, Some(1_500)),
                // In place.
                (true, Some(1_000)),
            ] {
                let product = Product {
                    x: Address(0),
                    w: Address(300),
                    bias: has_bias.then_some(Address(700)),
                    residual: residual.map(Address),
                    out: Address(1_000),
                    ..product(m, n, k)
                };
                let mut actual = memory.clone();
                evaluate(&Columns::of(&product), &mut actual);

                let mut expected = memory.clone();
                for row in 0..m {
                    for column in 0..n {
                        let sum: f32 = (0..k)
                            .map(|i| memory[row * k + i] * memory[300 + column * k + i])
                            .sum();
                        let bias = if has_bias { memory[700 + column] } else { 0.0 };
                        let residual =
                            residual.map_or(0.0, |start| memory[start as usize + row * n + column]);
                        expected[1_000 + row * n + column] = sum + bias + residual;
                    }
                }
                assert_eq!(actual, expected, "{}", describe(&product));
            }
        }
    }

    #[test]
    fn descriptors_hold_formats_and_sizes() {
        let columns = Columns::of(&product(577, 2304, 768));
        assert_eq!((columns.a.rows, columns.a.columns, columns.a.leading), (768, 2304, 768));
        assert_eq!((columns.b.rows, columns.b.columns, columns.b.leading), (768, 577, 768));
        assert_eq!((columns.d.rows, columns.d.columns, columns.d.leading), (2304, 577, 2304));
        assert_eq!((columns.a.format, columns.d.format), (Format::Bf16, Format::F32));
        assert_eq!(columns.c.address, columns.d.address, "without a residual c is d");
    }

    #[test]
    fn alignment_is_the_largest_power_of_two_up_to_256() {
        let cases =
            [(0x1000, 256), (0x1100, 256), (0x1080, 128), (0x1010, 16), (0x1002, 2), (0x1003, 1)];
        for (address, expected) in cases {
            assert_eq!(alignment(Address(address)), expected, "{address:#x}");
        }
    }

    #[test]
    fn plans_are_shared_by_products_of_one_shape_and_alignment() {
        let first = Product { bias: Some(Address(0x5000)), ..product(4, 8, 16) };
        let elsewhere = Product { x: Address(0x9000), bias: Some(Address(0x6000)), ..first };
        assert_eq!(PlanKey::of(&first), PlanKey::of(&elsewhere));
        let others = [
            Product { x: Address(0x9010), ..first },
            Product { bias: Some(Address(0x6004)), ..first },
            Product { bias: None, ..first },
            Product { residual: Some(Address(0x7008)), ..first },
            Product { m: 5, ..first },
            Product { format: Format::F16, ..first },
            Product { out_format: Format::Bf16, ..first },
        ];
        for other in others {
            assert_ne!(PlanKey::of(&first), PlanKey::of(&other), "{other:?}");
        }
    }

    #[test]
    fn products_that_cannot_be_computed_are_rejected_with_a_reason() {
        assert_eq!(objection(&product(3, 5, 7)), None);
        let bad = [
            (Product { k: 0, ..product(3, 5, 7) }, "k is 0"),
            (Product { m: 1 << 31, ..product(3, 5, 7) }, "2^31"),
            (Product { out_format: Format::F16, ..product(3, 5, 7) }, "neither f32"),
            (Product { out: Address(0x3002), ..product(3, 5, 7) }, "an address"),
            (Product { bias: Some(Address(0x3001)), ..product(3, 5, 7) }, "an address"),
            (Product { x: Address(0x1001), ..product(3, 5, 7) }, "an address"),
        ];
        for (product, expected) in bad {
            let found = objection(&product).expect("the product is bad");
            assert!(found.contains(expected), "{found}");
        }
    }

    #[test]
    fn messages_name_the_shape() {
        let product = Product { bias: Some(Address(0x5000)), ..product(577, 768, 3072) };
        assert_eq!(
            describe(&product),
            "product F32 [577, 768] = Bf16 [577, 3072] x [768, 3072]^T + bias"
        );
    }
}
