//! The host device itself: memory, faults, captures, and whether it finds defects of kernels.

use super::support::*;
use crate::gpu::device::{Address, Argument, Device, DeviceError, Format, Launch, Product};
use crate::gpu::host::{HostDevice, Order};
use crate::gpu::kernels::rows::{self, Activation};
use crate::gpu::kernels::source;

/// Launches one block of a kernel of `defects.cu`.
fn launch(
    device: &HostDevice,
    kernel: &str,
    threads: u32,
    arguments: &[Argument],
) -> Result<(), DeviceError> {
    device.launch(&Launch { kernel, grid: [1, 1, 1], threads, arguments })
}

fn failure(result: Result<(), DeviceError>) -> String {
    match result {
        Err(DeviceError::Failed(message)) => message,
        Ok(()) | Err(DeviceError::OutOfMemory(_) | DeviceError::Lost(_)) => {
            panic!("no failure: {result:?}")
        }
    }
}

#[test]
fn entry_points_are_listed_completely() {
    let Some(device) = HostDevice::try_new() else { return };
    let mut compiled = device.kernels();
    compiled.retain(|name| !name.starts_with("defect_"));
    compiled.sort();
    let mut listed = source::entry_points();
    listed.sort();
    assert_eq!(listed, compiled);
    for name in listed {
        assert!(source::PTX.contains(&format!(".entry {name}(")), "{name} is not in kernels.ptx");
    }
}

#[test]
fn missing_barriers_and_waits_change_the_result_with_the_order_of_threads() {
    let Some(device) = HostDevice::try_new() else { return };
    let (from, out) = (upload_ints(&device, &[5; 64]), device.allocate(256).unwrap());
    let out_argument = Argument::Address(out);
    for (kernel, arguments) in [
        ("defect_missing_barrier", vec![out_argument]),
        ("defect_early_reuse", vec![out_argument]),
        ("defect_missing_wait", vec![Argument::Address(from), out_argument]),
    ] {
        let [forward, backward] = [Order::Forward, Order::Backward].map(|order| {
            device.set_order(order);
            launch(&device, kernel, 64, &arguments).unwrap();
            download_ints(&device, out, 64)
        });
        assert_ne!(forward, backward, "{kernel}");
    }
}

#[test]
fn deadlocks_are_reported() {
    let Some(device) = HostDevice::try_new() else { return };
    let out = device.allocate(256).unwrap();
    let arguments = [Argument::Address(out)];
    for order in [Order::Forward, Order::Backward, Order::Shuffled(1)] {
        device.set_order(order);
        assert!(
            failure(launch(&device, "defect_deadlock", 64, &arguments))
                .contains("deadlock: 32 threads have finished")
        );
        assert!(
            failure(launch(&device, "defect_split_warp", 32, &arguments))
                .contains("16 wait at a block barrier")
        );
        assert!(
            failure(launch(&device, "defect_mixed_operations", 32, &arguments))
                .contains("different operations")
        );
    }
    // The device is usable afterwards.
    launch(&device, "defect_missing_barrier", 64, &arguments).unwrap();
}

#[test]
fn writes_beside_an_allocation_are_reported() {
    let Some(device) = HostDevice::try_new() else { return };
    let arguments = |out: Address| [Argument::Address(out), Argument::Int(8)];
    let out = device.allocate(32).unwrap();
    assert!(
        failure(launch(&device, "defect_overrun", 32, &arguments(out))).contains("defect_overrun")
    );
    let Some(device) = HostDevice::try_new() else { return };
    let out = device.allocate(36).unwrap();
    launch(&device, "defect_overrun", 32, &arguments(out)).unwrap();
}

#[test]
fn memory_that_was_never_written_is_nan() {
    let Some(device) = HostDevice::try_new() else { return };
    for format in FORMATS {
        let address = room(&device, format, 5);
        assert!(download(&device, format, address, 5).iter().all(|x| x.is_nan()));
    }
    let out = room(&device, Format::F32, 32);
    launch(&device, "defect_undefined_shared", 32, &[Argument::Address(out)]).unwrap();
    assert!(download(&device, Format::F32, out, 32).iter().all(|x| x.is_nan()));
}

#[test]
fn misaligned_vectors_are_reported() {
    let Some(device) = HostDevice::try_new() else { return };
    let arguments = [device.allocate(128), device.allocate(128)];
    let arguments = arguments.map(|address| Argument::Address(address.unwrap()));
    assert!(failure(launch(&device, "defect_misaligned", 32, &arguments)).contains("not aligned"));
}

#[test]
fn launches_that_do_not_fit_their_kernel_are_refused() {
    let Some(device) = HostDevice::try_new() else { return };
    let address = Argument::Address(device.allocate(256).unwrap());
    assert!(failure(launch(&device, "no_such_kernel", 32, &[])).contains("no_such_kernel"));
    assert!(
        failure(launch(&device, "activate_f32", 256, &[address, address, Argument::Int(0)]))
            .contains("kinds")
    );
    assert!(
        failure(launch(&device, "activate_f32", 256, &[address, Argument::Int(1)]))
            .contains("kinds")
    );
    let arguments = [address, Argument::Int(1), Argument::Int(0)];
    assert!(failure(launch(&device, "activate_f32", 128, &arguments)).contains("256 threads"));
    let result = device.launch(&Launch {
        kernel: "activate_f32",
        grid: [1, 65536, 1],
        threads: 256,
        arguments: &arguments,
    });
    assert!(failure(result).contains("grid"));
}

#[test]
fn copies_outside_of_an_allocation_are_refused() {
    let Some(device) = HostDevice::try_new() else { return };
    let (a, b) = (device.allocate(16).unwrap(), device.allocate(16).unwrap());
    failure(device.upload(a, &[0; 17]));
    failure(device.upload(a.offset(1), &[0; 16]));
    failure(device.download(a.offset(17), &mut []));
    failure(device.copy(a, b.offset(1), 16));
    failure(device.copy(a, a.offset(1), 8));
    failure(device.upload(Address::NULL, &[0]));
    device.free(a);
    failure(device.upload(a, &[0]));
    device.upload(b, &[1; 16]).unwrap();
}

#[test]
fn allocations_are_aligned_and_bounded_by_the_limit() {
    let Some(device) = HostDevice::try_new() else { return };
    device.set_memory_limit(1000);
    let a = device.allocate(600).unwrap();
    assert_eq!(a.0 % 256, 0);
    let info = device.memory_info().unwrap();
    assert_eq!((info.free, info.total), (400, 1000));
    assert!(matches!(device.allocate(401), Err(DeviceError::OutOfMemory(_))));
    device.allocate(400).unwrap();
    device.free(a);
    assert_eq!(device.memory_info().unwrap().free, 600);
    device.allocate(600).unwrap();
}

#[test]
fn product_agrees_with_its_twin() {
    let Some(device) = HostDevice::try_new() else { return };
    for format in FORMATS {
        for out_format in [Format::F32, format] {
            for (m, n, k) in [(0, 3, 4), (1, 1, 1), (5, 7, 9), (3, 33, 65), (577, 24, 48)] {
                let (x, w) =
                    (rounded(format, &random(1, m * k)), rounded(format, &random(2, n * k)));
                let (bias, residual) =
                    (rounded(out_format, &random(3, n)), rounded(out_format, &random(4, m * n)));
                let mut expected = Vec::new();
                for i in 0..m {
                    for j in 0..n {
                        let sum: f64 =
                            (0..k).map(|l| f64::from(x[i * k + l]) * f64::from(w[j * k + l])).sum();
                        expected.push(sum + f64::from(bias[j]) + f64::from(residual[i * n + j]));
                    }
                }
                let out = upload(&device, out_format, &residual);
                let of = Product {
                    format,
                    out_format,
                    m,
                    n,
                    k,
                    x: upload(&device, format, &x),
                    w: upload(&device, format, &w),
                    bias: Some(upload(&device, out_format, &bias)),
                    residual: Some(out),
                    out,
                };
                device.product(&of).unwrap();
                let actual = download(&device, out_format, out, m * n);
                assert_close(
                    &actual,
                    &expected,
                    unit(out_format) + 1e-5,
                    (format, out_format, m, n, k),
                );
            }
        }
    }
}

/// Work of all kinds that a graph holds: a product, a kernel and a copy.
struct Pipeline {
    x: Address,
    w: Address,
    middle: Address,
    out: Address,
}

impl Pipeline {
    fn new(device: &HostDevice) -> Self {
        Self {
            x: upload(device, Format::Bf16, &random(1, 40)),
            w: upload(device, Format::Bf16, &random(2, 60)),
            middle: room(device, Format::Bf16, 24),
            out: room(device, Format::Bf16, 24),
        }
    }

    fn submit(&self, device: &HostDevice) -> Result<(), DeviceError> {
        let format = Format::Bf16;
        let (bias, residual) = (None, None);
        let (x, w, out) = (self.x, self.w, self.middle);
        device.product(&Product {
            format,
            out_format: format,
            m: 4,
            n: 6,
            k: 10,
            x,
            w,
            bias,
            residual,
            out,
        })?;
        rows::activate(device, format, self.middle, 24, Activation::Gelu)?;
        device.copy(self.middle, self.out, 48)
    }

    fn result(&self, device: &HostDevice) -> Vec<u32> {
        bits(&download(device, Format::Bf16, self.out, 24))
    }
}

#[test]
fn replay_gives_the_bits_of_a_direct_run() {
    let Some(device) = HostDevice::try_new() else { return };
    let work = Pipeline::new(&device);
    device.begin_capture().unwrap();
    work.submit(&device).unwrap();
    let graph = device.end_capture().unwrap();
    assert_eq!(
        work.result(&device),
        [f32::NAN.to_bits() | 0xffff_0000; 24],
        "a capture runs nothing"
    );
    for seed in [1, 9] {
        let bytes: Vec<u8> =
            random(seed, 40).iter().flat_map(|x| x.to_le_bytes()[2..].to_vec()).collect();
        device.upload(work.x, &bytes).unwrap();
        device.replay(graph).unwrap();
        let replayed = work.result(&device);
        work.submit(&device).unwrap();
        assert_eq!(replayed, work.result(&device), "inputs {seed}");
    }
}

#[test]
fn calls_that_cannot_be_captured_fail_during_a_capture() {
    let Some(device) = HostDevice::try_new() else { return };
    let work = Pipeline::new(&device);
    failure(device.end_capture().map(drop));
    device.begin_capture().unwrap();
    failure(device.allocate(1).map(drop));
    failure(device.upload(work.x, &[0]));
    failure(device.download(work.x, &mut [0]));
    failure(device.synchronize());
    failure(device.begin_capture());
    failure(device.memory_info().map(drop));
    work.submit(&device).unwrap();
    let graph = device.end_capture().unwrap();
    device.replay(graph).unwrap();
    failure(device.replay(crate::gpu::device::GraphId(7)));
}

#[test]
fn injected_faults_fail_their_call_only() {
    let Some(device) = HostDevice::try_new() else { return };
    let work = Pipeline::new(&device);
    device.fail_call(1, DeviceError::OutOfMemory("injected".into()));
    assert_eq!(work.submit(&device), Err(DeviceError::OutOfMemory("injected".into())));
    work.submit(&device).unwrap();
    device.begin_capture().unwrap();
    device.fail_call(0, DeviceError::Failed("injected".into()));
    failure(device.end_capture().map(drop));
    device.synchronize().unwrap();
}

#[test]
fn lost_device_fails_every_later_call() {
    let Some(device) = HostDevice::try_new() else { return };
    let work = Pipeline::new(&device);
    let calls = device.calls();
    let lost = DeviceError::Lost("injected".into());
    device.fail_call(2, lost.clone());
    assert_eq!(work.submit(&device), Err(lost.clone()));
    assert_eq!(device.calls(), calls + 3);
    assert_eq!(device.synchronize(), Err(lost.clone()));
    assert_eq!(device.allocate(1), Err(lost.clone()));
    assert_eq!(device.begin_capture(), Err(lost));
    device.free(work.x);
}
