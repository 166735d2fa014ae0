//! What is computed from logits.

use super::support::*;
use crate::gpu::device::Format;
use crate::gpu::host::HostDevice;
use crate::gpu::kernels::scores;

/// Numbers of logits around what a block of threads takes, and BLIP's vocabulary.
const SIZES: [usize; 9] = [1, 2, 31, 255, 256, 257, 2049, 4100, 30524];

/// Returns logits with many equal values, and the indices of a row in the order of rank.
fn logits(rows: usize, n: usize) -> (Vec<f32>, Vec<Vec<usize>>) {
    let values: Vec<f32> =
        random(n as u64, rows * n).iter().map(|x| (x * 40.0).round() / 4.0).collect();
    let ranks = values
        .chunks(n)
        .map(|row| {
            let mut indices: Vec<usize> = (0..n).collect();
            // The sort is stable: the lower index stays first among equals.
            indices.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            indices
        })
        .collect();
    (values, ranks)
}

fn greedy(device: &HostDevice, logits: &[f32], n: usize) -> Vec<[f32; 4]> {
    let rows = logits.len() / n;
    let (from, out) = (upload(device, Format::F32, logits), room(device, Format::F32, rows * 4));
    scores::greedy(device, [from, out], rows, n).unwrap();
    let values = download(device, Format::F32, out, rows * 4);
    values.chunks(4).map(|row| row.try_into().unwrap()).collect()
}

fn top_k(device: &HostDevice, logits: &[f32], n: usize, k: usize) -> (Vec<f32>, Vec<i32>) {
    let rows = logits.len() / n;
    let from = upload(device, Format::F32, logits);
    let (values, indices) =
        (room(device, Format::F32, rows * k), room(device, Format::F32, rows * k));
    scores::top_k(device, [from, values, indices], rows, n, k).unwrap();
    (download(device, Format::F32, values, rows * k), download_ints(device, indices, rows * k))
}

#[test]
fn greedy_finds_the_first_of_the_largest_and_the_log_of_the_sum() {
    let Some(device) = HostDevice::try_new() else { return };
    for n in SIZES {
        let (values, ranks) = logits(2, n);
        let results = in_every_order(&device, n, || {
            greedy(&device, &values, n).iter().map(|row| row.map(f32::to_bits)).collect::<Vec<_>>()
        });
        for (row, result) in results.iter().enumerate() {
            let logits = &values[row * n..][..n];
            let [largest, index, log_sum, zero] = *result;
            assert_eq!(index as usize, ranks[row][0], "{n} logits");
            assert_eq!(largest, logits[index as usize].to_bits());
            let sum: f64 = logits.iter().map(|&x| (f64::from(x) - 10.0).exp()).sum();
            assert_close(&[f32::from_bits(log_sum)], &[sum.ln() + 10.0], 1e-5, n);
            assert_eq!(zero, 0);
        }
    }
}

#[test]
fn greedy_and_top_k_report_values_that_are_not_finite() {
    let Some(device) = HostDevice::try_new() else { return };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 255, 256, 299] {
            let (mut values, ranks) = logits(2, 300);
            values[at] = bad;
            let results = greedy(&device, &values, 300);
            assert_eq!(results[0].map(f32::to_bits), [0, u32::MAX, 0, 0], "{bad} at {at}");
            assert_eq!(
                results[1][1].to_bits() as usize,
                ranks[1][0],
                "the other row is not concerned"
            );
            let (best, indices) = top_k(&device, &values, 300, 2);
            assert_eq!((&best[..2], &indices[..2]), (&[0.0; 2][..], &[-1; 2][..]), "{bad} at {at}");
            assert_eq!(indices[2] as usize, ranks[1][0]);
        }
    }
}

#[test]
fn top_k_is_sorted_with_the_lower_index_first_among_equals() {
    let Some(device) = HostDevice::try_new() else { return };
    for n in SIZES {
        let (values, ranks) = logits(2, n);
        for k in [1, 2, 10] {
            let (best, indices) = in_every_order(&device, (n, k), || top_k(&device, &values, n, k));
            for row in 0..2 {
                for i in 0..k {
                    let (value, index) = (best[row * k + i], indices[row * k + i]);
                    match ranks[row].get(i) {
                        Some(&rank) => assert_eq!(
                            (value, index),
                            (values[row * n + rank], rank as i32),
                            "{n}, {k}"
                        ),
                        None => assert_eq!((value, index), (0.0, -1), "{n}, {k}"),
                    }
                }
            }
        }
    }
}

#[test]
fn top_k_takes_all_of_one_thread_where_they_are_the_largest() {
    let Some(device) = HostDevice::try_new() else { return };
    // Every 256th value belongs to the same thread.
    let values: Vec<f32> =
        (0..2000).map(|i| if i % 256 == 3 { 5.0 + i as f32 } else { -1.0 }).collect();
    let (_, indices) = top_k(&device, &values, 2000, 9);
    assert_eq!(indices, [1795, 1539, 1283, 1027, 771, 515, 259, 3, 0]);
}
