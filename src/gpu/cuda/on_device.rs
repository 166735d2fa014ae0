//! Tests of [`CudaDevice`] on a device. Where there is none, they say that they were skipped. `tests/gpu/fake_cuda/run.sh`
//! runs them with stand-ins for NVIDIA's libraries.

use super::{CudaDevice, KernelSource, probe, usable};
use crate::gpu::device::{
    Address, Argument, Device, DeviceError, Format, GraphId, Launch, Product,
};

/// Adds a number to each of `n` values.
const CUDA: &str = r#"
extern "C" __global__ void add(float* x, int n, float a) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] += a;
}
"#;

/// What NVRTC 12.0 makes of it for `compute_80`.
const PTX: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry add(.param .u64 add_param_0, .param .u32 add_param_1, .param .f32 add_param_2)
{
    .reg .pred %p<2>;
    .reg .f32 %f<4>;
    .reg .b32 %r<6>;
    .reg .b64 %rd<5>;
    ld.param.u64 %rd1, [add_param_0];
    ld.param.u32 %r2, [add_param_1];
    ld.param.f32 %f1, [add_param_2];
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r4, %ntid.x;
    mov.u32 %r5, %tid.x;
    mad.lo.s32 %r1, %r3, %r4, %r5;
    setp.ge.s32 %p1, %r1, %r2;
    @%p1 bra $L__BB0_2;
    cvta.to.global.u64 %rd2, %rd1;
    mul.wide.s32 %rd3, %r1, 4;
    add.s64 %rd4, %rd2, %rd3;
    ld.global.f32 %f2, [%rd4];
    add.f32 %f3, %f2, %f1;
    st.global.f32 [%rd4], %f3;
$L__BB0_2:
    ret;
}
";

/// A host with a driver but without cuBLASLt has no usable device: its models run on the CPU.
#[test]
fn usable_devices_can_be_opened() {
    let source = KernelSource { cuda: CUDA.to_owned(), ptx: PTX };
    match usable() {
        Ok(ordinals) => {
            for ordinal in ordinals {
                drop(CudaDevice::try_new(ordinal, &source).unwrap());
            }
        }
        Err(reason) => {
            println!("{reason}");
            for info in probe().unwrap_or_default() {
                assert!(CudaDevice::try_new(info.ordinal, &source).is_err(), "{reason}");
            }
        }
    }
}

/// Opens the first device that we support.
fn open(cuda: &str) -> Option<CudaDevice> {
    let usable = usable().inspect_err(|reason| println!("skipped: {reason}"));
    let ordinal = usable.ok()?[0];
    let source = KernelSource { cuda: cuda.to_owned(), ptx: PTX };
    let device = CudaDevice::try_new(ordinal, &source).unwrap();
    println!("{}", device.description());
    Some(device)
}

fn upload_floats(device: &CudaDevice, to: Address, values: &[f32]) {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
    device.upload(to, &bytes).unwrap();
}

fn download_floats(device: &CudaDevice, from: Address, count: usize) -> Vec<f32> {
    let mut bytes = vec![0; count * 4];
    device.download(from, &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|value| f32::from_ne_bytes(value.try_into().unwrap())).collect()
}

fn add(device: &CudaDevice, x: Address, n: i32, a: f32) -> Result<(), DeviceError> {
    device.launch(&Launch {
        kernel: "add",
        grid: [n.unsigned_abs().div_ceil(32), 1, 1],
        threads: 32,
        arguments: &[Argument::Address(x), Argument::Int(n), Argument::Float(a)],
    })
}

/// `(m, n, k)` in f32, without bias and residual.
fn small_product(m: usize, n: usize, k: usize, x: Address, w: Address, out: Address) -> Product {
    let format = Format::F32;
    Product { format, out_format: format, m, n, k, x, w, bias: None, residual: None, out }
}

#[test]
fn kernels_change_memory_in_the_order_of_the_calls() {
    let Some(device) = open(CUDA) else { return };
    let x = device.allocate(400).unwrap();
    let y = device.allocate(400).unwrap();
    assert_eq!((x.0 % 256, y.0 % 256), (0, 0));
    upload_floats(&device, x, &[0.0; 100]);
    add(&device, x, 100, 0.5).unwrap();
    device.copy(x, y, 400).unwrap();
    add(&device, x, 99, -1.0).unwrap();
    let mut expected = [-0.5; 100];
    expected[99] = 0.5;
    assert_eq!(download_floats(&device, x, 100), expected);
    assert_eq!(download_floats(&device, y, 100), [0.5; 100]);
    device.free(x);
    device.free(x);
    let info = device.memory_info().unwrap();
    assert!(0 < info.free && info.free < info.total, "{info:?}");
}

/// Each device has a worker thread in the server. Here one thread uses both in turn, which finds calls that rely on the
/// context of the call before.
#[test]
fn devices_work_beside_each_other() {
    let usable = usable().inspect_err(|reason| println!("skipped: {reason}"));
    let Ok([first, second, ..]) = usable.as_deref() else {
        return println!("skipped: fewer than two devices");
    };
    let source = KernelSource { cuda: CUDA.to_owned(), ptx: PTX };
    let devices = [*first, *second].map(|ordinal| CudaDevice::try_new(ordinal, &source).unwrap());
    let memory = devices.each_ref().map(|device| device.allocate(4).unwrap());
    for (device, x) in devices.iter().zip(memory) {
        upload_floats(device, x, &[0.0]);
    }
    for number in 1..=10 {
        for (device, (x, sign)) in devices.iter().zip(memory.into_iter().zip([1.0, -1.0])) {
            add(device, x, 1, sign * number as f32).unwrap();
        }
    }
    let graphs = devices.each_ref().map(|device| {
        device.begin_capture().unwrap();
        device
    });
    for (device, x) in graphs.iter().zip(memory) {
        add(device, x, 1, 1.0).unwrap();
    }
    for device in graphs {
        let graph = device.end_capture().unwrap();
        device.replay(graph).unwrap();
        device.drop_graph(graph);
    }
    let values = [0, 1].map(|index| download_floats(&devices[index], memory[index], 1));
    assert_eq!(values, [[56.0], [-54.0]]);
    for (device, x) in devices.iter().zip(memory) {
        device.free(x);
    }
}

#[test]
fn built_in_ptx_replaces_sources_that_cannot_be_compiled() {
    let Some(device) = open("this is not C++") else { return };
    assert!(device.description().contains("kernels from built-in PTX"));
    let x = device.allocate(4).unwrap();
    upload_floats(&device, x, &[1.0]);
    add(&device, x, 1, 2.0).unwrap();
    assert_eq!(download_floats(&device, x, 1), [3.0]);
}

#[test]
fn bytes_may_be_changed_as_soon_as_an_upload_returns() {
    let Some(device) = open(CUDA) else { return };
    // More than all pinned segments, and not a multiple of their size.
    let bytes = (37 << 20) + 5;
    let memory = device.allocate(bytes).unwrap();
    let original: Vec<u8> = (0..bytes).map(|i| (i * 31 % 251) as u8).collect();
    let mut changed = original.clone();
    device.upload(memory, &changed).unwrap();
    changed.fill(0);
    let mut found = vec![0; bytes];
    device.download(memory, &mut found).unwrap();
    assert!(found == original);

    let mut expected = Vec::new();
    for i in 0..20_000_usize {
        let piece = vec![(i % 251) as u8; 1 + i * 7 % 900];
        device.upload(memory.offset(expected.len()), &piece).unwrap();
        expected.extend(piece);
    }
    let mut found = vec![0; expected.len()];
    device.download(memory, &mut found).unwrap();
    assert!(found == expected);
}

#[test]
fn graphs_replay_launches_copies_and_products() {
    let Some(device) = open(CUDA) else { return };
    let [x, w, y] = [0; 3].map(|_| device.allocate(256).unwrap());
    // (1, 1, 1) times the rows (1, 0, 0) and (1, 1, 1).
    upload_floats(&device, w, &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
    let record = || {
        add(&device, x, 3, 1.0)?;
        device.copy(x, y, 12)?;
        device.product(&small_product(1, 2, 3, x, w, y.offset(64)))
    };
    // Loads everything.
    upload_floats(&device, x, &[0.0; 3]);
    record().unwrap();
    device.synchronize().unwrap();

    device.begin_capture().unwrap();
    record().unwrap();
    let temporary = device.allocate(16).unwrap();
    device.free(temporary);
    let graph = device.end_capture().unwrap();
    // Recording has run nothing.
    assert_eq!(download_floats(&device, x, 3), [1.0; 3]);
    for _ in 0..3 {
        device.replay(graph).unwrap();
    }
    assert_eq!(download_floats(&device, y, 3), [4.0; 3]);
    assert_eq!(download_floats(&device, y.offset(64), 2), [4.0, 12.0]);
    // A graph is dropped while it runs. Graphs that are built later get other numbers.
    device.replay(graph).unwrap();
    device.drop_graph(graph);
    device.drop_graph(graph);
    device.begin_capture().unwrap();
    add(&device, x, 3, 1.0).unwrap();
    let other = device.end_capture().unwrap();
    assert!(matches!(device.replay(graph), Err(DeviceError::Failed(_))));
    assert_eq!(download_floats(&device, y, 3), [5.0; 3]);
    device.replay(other).unwrap();
    device.synchronize().unwrap();
}

#[test]
fn calls_that_would_break_a_capture_are_refused() {
    let Some(device) = open(CUDA) else { return };
    let x = device.allocate(16).unwrap();
    assert!(device.end_capture().is_err(), "nothing is captured");
    device.begin_capture().unwrap();
    let refused = [
        device.upload(x, &[1]),
        device.download(x, &mut [0]),
        device.synchronize(),
        device.begin_capture(),
        device.replay(GraphId(0)),
    ];
    for result in refused {
        let error = result.expect_err("the call would invalidate the capture");
        assert!(error.to_string().contains("during a capture"), "{error}");
    }
    device.memory_info().unwrap();
    add(&device, x, 3, 1.0).unwrap();
    let graph = device.end_capture().unwrap();
    device.replay(graph).unwrap();
    device.synchronize().unwrap();
}

#[test]
fn wrong_calls_fail_and_later_calls_succeed() {
    let Some(device) = open(CUDA) else { return };
    let x = device.allocate(16).unwrap();
    let launch = |kernel, threads| {
        let arguments = &[Argument::Address(x), Argument::Int(0), Argument::Float(0.0)];
        device.launch(&Launch { kernel, grid: [1; 3], threads, arguments })
    };
    let failures = [
        (launch("missing", 32), "missing"),
        (launch("add", 4096), "kernel add with grid [1, 1, 1] of 4096 threads"),
        (device.replay(GraphId(7)), "unknown graph"),
        (device.product(&small_product(1, 2, 0, x, x, x)), "k is 0"),
    ];
    for (result, expected) in failures {
        match result {
            Err(DeviceError::Failed(message)) => assert!(message.contains(expected), "{message}"),
            other => panic!("{expected}: {other:?}"),
        }
    }
    // A terabyte.
    assert!(matches!(device.allocate(1 << 40), Err(DeviceError::OutOfMemory(_))));
    device.synchronize().unwrap();
    launch("add", 32).unwrap();
    device.synchronize().unwrap();
}

#[test]
fn threads_may_call_a_device_at_the_same_time() {
    let Some(device) = open(CUDA) else { return };
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let device = &device;
            scope.spawn(move || {
                for _ in 0..50 {
                    let memory = device.allocate(64).unwrap();
                    device.upload(memory, &[thread; 64]).unwrap();
                    let mut found = [0; 64];
                    device.download(memory, &mut found).unwrap();
                    assert_eq!(found, [thread; 64]);
                    device.free(memory);
                }
            });
        }
    });
}

/// Encodes -1, 0 or 1.
fn encode(value: i8, format: Format) -> Vec<u8> {
    let bits = |one: u16| match value {
        0 => 0,
        1 => one,
        _ => one | 0x8000,
    };
    match format {
        Format::F32 => f32::from(value).to_ne_bytes().to_vec(),
        Format::Bf16 => bits(0x3f80).to_ne_bytes().to_vec(),
        Format::F16 => bits(0x3c00).to_ne_bytes().to_vec(),
    }
}

/// Decodes a number that is neither infinite nor subnormal.
fn decode(bytes: &[u8], format: Format) -> f32 {
    let narrow = || u32::from(u16::from_ne_bytes(bytes.try_into().unwrap()));
    match format {
        Format::F32 => f32::from_ne_bytes(bytes.try_into().unwrap()),
        Format::Bf16 => f32::from_bits(narrow() << 16),
        Format::F16 => match narrow() {
            0 | 0x8000 => 0.0,
            // The exponent's bias is 127 instead of 15.
            bits => {
                let magnitude = ((bits & 0x7fff) << 13) + (112 << 23);
                f32::from_bits(((bits & 0x8000) << 16) | magnitude)
            }
        },
    }
}

/// Small integers, so that every format holds every sum exactly, in any order.
fn digits(count: usize, seed: usize) -> Vec<i8> {
    (0..count).map(|i| ((i * 5 + i / 7 + seed) % 3) as i8 - 1).collect()
}

/// The matrices of one product, and where they are on the device.
struct Case<'a> {
    device: &'a CudaDevice,
    memory: Address,
    /// Added to every address, in values: 1 is the worst alignment.
    shift: usize,
}

impl Case<'_> {
    /// Uploads values to the `index`-th of eight places.
    fn place(&self, index: usize, values: &[i8], format: Format) -> Address {
        let address = self.memory.offset((index << 16) + self.shift * format.bytes());
        let bytes: Vec<u8> = values.iter().flat_map(|value| encode(*value, format)).collect();
        self.device.upload(address, &bytes).unwrap();
        address
    }

    /// Computes one product in four variants, and compares with sums of integers.
    fn check(&self, format: Format, out_format: Format, [m, n, k]: [usize; 3]) {
        let [x, w, bias, residual] =
            [(m * k, 0), (n * k, 1), (n, 2), (m * n, 1)].map(|(count, seed)| digits(count, seed));
        for (has_bias, residual_at) in
            [(false, None), (true, None), (true, Some(3)), (true, Some(4))]
        {
            let product = Product {
                format,
                out_format,
                m,
                n,
                k,
                x: self.place(0, &x, format),
                w: self.place(1, &w, format),
                bias: has_bias.then(|| self.place(2, &bias, out_format)),
                out: self.place(4, &vec![1; m * n], out_format),
                // In place 4 it is the output itself.
                residual: residual_at.map(|index| self.place(index, &residual, out_format)),
            };
            self.device.product(&product).unwrap();
            let mut bytes = vec![0; m * n * out_format.bytes()];
            self.device.download(product.out, &mut bytes).unwrap();
            for (index, value) in bytes.chunks_exact(out_format.bytes()).enumerate() {
                let (row, column) = (index / n, index % n);
                let mut sum: i32 =
                    (0..k).map(|i| i32::from(x[row * k + i]) * i32::from(w[column * k + i])).sum();
                sum += if has_bias { i32::from(bias[column]) } else { 0 };
                sum += if residual_at.is_some() { i32::from(residual[index]) } else { 0 };
                let found = decode(value, out_format);
                assert!(
                    (found - sum as f32).abs() < 0.5,
                    "{product:?}: [{row}, {column}] is {found} instead of {sum}"
                );
            }
        }
    }
}

#[test]
fn products_are_right_in_every_format_shape_and_alignment() {
    let Some(device) = open(CUDA) else { return };
    let memory = device.allocate(8 << 16).unwrap();
    let formats = [
        (Format::F32, Format::F32),
        (Format::Bf16, Format::F32),
        (Format::Bf16, Format::Bf16),
        (Format::F16, Format::F32),
        (Format::F16, Format::F16),
    ];
    for shift in [0, 1] {
        let case = Case { device: &device, memory, shift };
        for (format, out_format) in formats {
            for shape in [[1, 1, 1], [3, 5, 7], [9, 8, 16], [65, 64, 96], [33, 130, 31]] {
                case.check(format, out_format, shape);
            }
        }
    }
}

/// Products of one shape share a plan, which holds a pointer to the bias.
#[test]
fn each_product_adds_its_own_bias() {
    let Some(device) = open(CUDA) else { return };
    let [x, w, biases, out] = [0; 4].map(|_| device.allocate(512).unwrap());
    upload_floats(&device, x, &[1.0, 1.0]);
    upload_floats(&device, w, &[2.0, 3.0]);
    upload_floats(&device, biases, &[10.0]);
    upload_floats(&device, biases.offset(256), &[20.0]);
    for (bias, at) in [(biases, 0), (biases.offset(256), 256)] {
        let product = small_product(1, 1, 2, x, w, out.offset(at));
        device.product(&Product { bias: Some(bias), ..product }).unwrap();
    }
    assert_eq!(download_floats(&device, out, 1), [15.0]);
    assert_eq!(download_floats(&device, out.offset(256), 1), [25.0]);
}

#[test]
fn digits_survive_every_format() {
    for format in [Format::F32, Format::Bf16, Format::F16] {
        for value in [-1, 0, 1] {
            let bytes = encode(value, format);
            assert!((decode(&bytes, format) - f32::from(value)).abs() < f32::EPSILON);
        }
    }
    assert!((decode(&0xc900_u16.to_ne_bytes(), Format::F16) + 10.0).abs() < f32::EPSILON);
}
