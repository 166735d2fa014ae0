//! Makes the n-th call of one kind fail, in a process that has this library in `LD_PRELOAD`. `server.rs` compiles this
//! file with `rustc --crate-type cdylib`; it belongs to no crate. It exceeds 500 lines because it replaces about forty
//! functions, a few lines each.
//!
//! The environment variable `NTH_CONTROL` names the control block (`layout.rs`). Functions of the C library are replaced
//! by functions of the same name, which count the call, and fail it or make the system call. Not seen are system calls
//! that a program makes without the C library (crate rustix), and those that the C library makes for itself.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering::SeqCst};

#[path = "layout.rs"]
#[allow(dead_code)]
mod layout;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn getenv(name: *const c_char) -> *const c_char;
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn __errno_location() -> *mut c_int;
    fn __libc_malloc(size: usize) -> *mut c_void;
    fn __libc_calloc(count: usize, size: usize) -> *mut c_void;
    fn __libc_realloc(old: *mut c_void, size: usize) -> *mut c_void;
    fn __libc_memalign(align: usize, size: usize) -> *mut c_void;
}

/// Numbers of system calls.
#[cfg(target_arch = "x86_64")]
mod number {
    pub const READ: i64 = 0;
    pub const WRITE: i64 = 1;
    pub const CLOSE: i64 = 3;
    pub const LSEEK: i64 = 8;
    pub const MMAP: i64 = 9;
    pub const PREAD: i64 = 17;
    pub const READV: i64 = 19;
    pub const WRITEV: i64 = 20;
    pub const SOCKET: i64 = 41;
    pub const SENDTO: i64 = 44;
    pub const RECVFROM: i64 = 45;
    pub const SENDMSG: i64 = 46;
    pub const RECVMSG: i64 = 47;
    pub const BIND: i64 = 49;
    pub const LISTEN: i64 = 50;
    pub const GETSOCKNAME: i64 = 51;
    pub const SOCKETPAIR: i64 = 53;
    pub const SETSOCKOPT: i64 = 54;
    pub const GETSOCKOPT: i64 = 55;
    pub const EPOLL_CTL: i64 = 233;
    pub const OPENAT: i64 = 257;
    pub const NEWFSTATAT: i64 = 262;
    pub const READLINKAT: i64 = 267;
    pub const EPOLL_PWAIT: i64 = 281;
    pub const ACCEPT4: i64 = 288;
    pub const EVENTFD2: i64 = 290;
    pub const EPOLL_CREATE1: i64 = 291;
    pub const GETRANDOM: i64 = 318;
    pub const STATX: i64 = 332;
}
#[cfg(target_arch = "aarch64")]
mod number {
    pub const READ: i64 = 63;
    pub const WRITE: i64 = 64;
    pub const CLOSE: i64 = 57;
    pub const LSEEK: i64 = 62;
    pub const MMAP: i64 = 222;
    pub const PREAD: i64 = 67;
    pub const READV: i64 = 65;
    pub const WRITEV: i64 = 66;
    pub const SOCKET: i64 = 198;
    pub const SENDTO: i64 = 206;
    pub const RECVFROM: i64 = 207;
    pub const SENDMSG: i64 = 211;
    pub const RECVMSG: i64 = 212;
    pub const BIND: i64 = 200;
    pub const LISTEN: i64 = 201;
    pub const GETSOCKNAME: i64 = 204;
    pub const SOCKETPAIR: i64 = 199;
    pub const SETSOCKOPT: i64 = 208;
    pub const GETSOCKOPT: i64 = 209;
    pub const EPOLL_CTL: i64 = 21;
    pub const OPENAT: i64 = 56;
    pub const NEWFSTATAT: i64 = 79;
    pub const READLINKAT: i64 = 78;
    pub const EPOLL_PWAIT: i64 = 22;
    pub const ACCEPT4: i64 = 242;
    pub const EVENTFD2: i64 = 19;
    pub const EPOLL_CREATE1: i64 = 20;
    pub const GETRANDOM: i64 = 278;
    pub const STATX: i64 = 291;
}

const AT_FDCWD: c_int = -100;
const ENOMEM: u64 = 12;
const EAGAIN: u64 = 11;

static CONTROL: AtomicPtr<AtomicU64> = AtomicPtr::new(std::ptr::null_mut());
static OPENDIR: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
static READDIR: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
static THREAD: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
/// Prints the stack of the call that fails, and of each call that is counted while none fails.
static TRACE: AtomicU32 = AtomicU32::new(0);

thread_local! {
    /// True while the shim itself runs: what it calls is not counted.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

#[used]
#[unsafe(link_section = ".init_array")]
static INIT: extern "C" fn() = init;

extern "C" fn init() {
    unsafe {
        let next = -1_isize as *mut c_void;
        OPENDIR.store(dlsym(next, c"opendir".as_ptr()), SeqCst);
        READDIR.store(dlsym(next, c"readdir64".as_ptr()), SeqCst);
        THREAD.store(dlsym(next, c"pthread_create".as_ptr()), SeqCst);
        TRACE.store(u32::from(!getenv(c"NTH_TRACE".as_ptr()).is_null()), SeqCst);
        let path = getenv(c"NTH_CONTROL".as_ptr());
        if path.is_null() {
            return;
        }
        let (read_write, shared) = (2, 1);
        let file = syscall(number::OPENAT, AT_FDCWD, path, read_write | 0o2_000_000, 0);
        let map =
            syscall(number::MMAP, 0_usize, layout::BYTES, 1 | read_write, shared, file, 0_usize);
        syscall(number::CLOSE, file);
        if file < 0 || (-4095..0).contains(&map) {
            panic!("the control block cannot be mapped");
        }
        CONTROL.store(map as *mut AtomicU64, SeqCst);
    }
}

fn field(index: usize) -> Option<&'static AtomicU64> {
    let control = CONTROL.load(SeqCst);
    if control.is_null() { None } else { Some(unsafe { &*control.add(index) }) }
}

fn armed() -> bool {
    field(layout::ARMED).is_some_and(|armed| armed.load(SeqCst) == 1) && !INSIDE.get()
}

const fn kind(name: &str) -> usize {
    let mut index = 0;
    loop {
        let (a, b) = (layout::KINDS[index].as_bytes(), name.as_bytes());
        let mut same = a.len() == b.len();
        let mut at = 0;
        while same && at < a.len() {
            same = a[at] == b[at];
            at += 1;
        }
        if same {
            return index;
        }
        index += 1;
    }
}

/// Counts a call. Returns what must become of it: `None` if it takes place.
fn count(kind: usize, name: &str, place: Place) -> Option<u64> {
    let armed = armed();
    if !armed {
        return None;
    }
    INSIDE.set(true);
    let nth = field(layout::COUNTS + kind)?.fetch_add(1, SeqCst) + 1;
    let (wanted, which) = (field(layout::KIND)?.load(SeqCst), field(layout::NTH)?.load(SeqCst));
    let fails = wanted == kind as u64 && which == nth;
    if fails {
        field(layout::HITS)?.fetch_add(1, SeqCst);
        note(name, &place);
    }
    if TRACE.load(SeqCst) == 1 && (fails || (which == 0 && wanted == kind as u64)) {
        trace(nth, name, &place);
    }
    INSIDE.set(false);
    if fails { Some(field(layout::ACTION)?.load(SeqCst)) } else { None }
}

/// What a call is about.
enum Place {
    Path(*const c_char),
    Descriptor(c_int),
    Bytes(usize),
    None,
}

/// Text in a buffer, without an allocation.
struct Line {
    bytes: [u8; 400],
    length: usize,
}

impl Line {
    fn push(&mut self, text: &[u8]) {
        let space = &mut self.bytes[self.length..];
        let length = text.len().min(space.len());
        space[..length].copy_from_slice(&text[..length]);
        self.length += length;
    }

    fn push_number(&mut self, mut value: usize) {
        let mut digits = [0; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (value % 10) as u8;
            value /= 10;
            if value == 0 {
                break;
            }
        }
        self.push(&digits[at..]);
    }

    fn of(name: &str, place: &Place) -> Self {
        let mut line = Self { bytes: [0; 400], length: 0 };
        line.push(name.as_bytes());
        line.push(b" ");
        match *place {
            Place::Path(path) if !path.is_null() => {
                line.push(unsafe { CStr::from_ptr(path) }.to_bytes());
            }
            Place::Descriptor(..0) => line.push(b"anonymous"),
            Place::Descriptor(descriptor) => {
                let mut target = [0_u8; 256];
                let length = link_of(descriptor, &mut target);
                line.push(&target[..length]);
            }
            Place::Bytes(bytes) => line.push_number(bytes),
            Place::Path(_) | Place::None => {}
        }
        line
    }
}

/// What a descriptor refers to, as `/proc` says.
fn link_of(descriptor: c_int, target: &mut [u8; 256]) -> usize {
    let mut path = Line { bytes: [0; 400], length: 0 };
    path.push(b"/proc/self/fd/");
    path.push_number(descriptor.max(0) as usize);
    path.push(b"\0");
    let length = unsafe {
        syscall(number::READLINKAT, AT_FDCWD, path.bytes.as_ptr(), target.as_mut_ptr(), 256_usize)
    };
    length.max(0) as usize
}

fn note(name: &str, place: &Place) {
    let line = Line::of(name, place);
    let control = CONTROL.load(SeqCst).cast::<u8>();
    for (at, byte) in line.bytes.iter().take(line.length).chain(&[0]).enumerate() {
        unsafe { control.add(layout::PLACE + at).write_volatile(*byte) };
    }
}

fn trace(nth: u64, name: &str, place: &Place) {
    let line = Line::of(name, place);
    let stack = std::backtrace::Backtrace::force_capture();
    let text = format!(
        "NTH {nth} {}\n{stack}\nNTH END\n",
        String::from_utf8_lossy(&line.bytes[..line.length])
    );
    unsafe { syscall(number::WRITE, 2, text.as_ptr(), text.len()) };
}

fn fail(errno: u64) -> c_int {
    unsafe { *__errno_location() = errno as c_int };
    -1
}

// ---- memory

fn refuses(bytes: usize, name: &str) -> bool {
    let least = field(layout::MIN_BYTES).map_or(u64::MAX, |least| least.load(SeqCst));
    bytes as u64 >= least && count(const { kind("allocate") }, name, Place::Bytes(bytes)).is_some()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn malloc(size: usize) -> *mut c_void {
    if refuses(size, "malloc") {
        fail(ENOMEM);
        return std::ptr::null_mut();
    }
    unsafe { __libc_malloc(size) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn calloc(number: usize, size: usize) -> *mut c_void {
    if refuses(number.saturating_mul(size), "calloc") {
        fail(ENOMEM);
        return std::ptr::null_mut();
    }
    unsafe { __libc_calloc(number, size) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn realloc(old: *mut c_void, size: usize) -> *mut c_void {
    if refuses(size, "realloc") {
        fail(ENOMEM);
        return std::ptr::null_mut();
    }
    unsafe { __libc_realloc(old, size) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn posix_memalign(out: *mut *mut c_void, align: usize, size: usize) -> c_int {
    if refuses(size, "posix_memalign") {
        return ENOMEM as c_int;
    }
    let memory = unsafe { __libc_memalign(align, size) };
    if memory.is_null() {
        return ENOMEM as c_int;
    }
    unsafe { *out = memory };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
    if refuses(size, "aligned_alloc") {
        fail(ENOMEM);
        return std::ptr::null_mut();
    }
    unsafe { __libc_memalign(align, size) }
}

// ---- files

/// The failure of a call of this kind, as the value that it returns.
macro_rules! fails {
    ($kind:literal, $place:expr) => {
        if let Some(errno) = count(const { kind($kind) }, $kind, $place) {
            return fail(errno) as _;
        }
    };
}

macro_rules! opens {
    ($($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
            fails!("open", Place::Path(path));
            unsafe { syscall(number::OPENAT, AT_FDCWD, path, flags, mode) as c_int }
        }
    )*};
}
opens!(open open64);

macro_rules! opens_at {
    ($($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(at: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
            fails!("open", Place::Path(path));
            unsafe { syscall(number::OPENAT, at, path, flags, mode) as c_int }
        }
    )*};
}
opens_at!(openat openat64);

/// True for TCP sockets, whose reads and writes are the kinds `receive` and `send`.
fn is_socket(descriptor: c_int) -> bool {
    let (mut domain, mut length): (c_int, c_uint) = (0, 4);
    let (level, domain_of) = (1, 39);
    let known = unsafe {
        let before = *__errno_location();
        let known = syscall(
            number::GETSOCKOPT,
            descriptor,
            level,
            domain_of,
            &raw mut domain,
            &raw mut length,
        );
        *__errno_location() = before;
        known
    };
    known == 0 && (domain == 2 || domain == 10)
}

/// True for files, directories and pipes: not for sockets, and not for descriptors of the kernel's own making (eventfd).
fn is_file(descriptor: c_int) -> bool {
    let before = unsafe { *__errno_location() };
    let mut target = [0; 256];
    let length = link_of(descriptor, &mut target);
    unsafe { *__errno_location() = before };
    !target[..length].starts_with(b"anon_inode:") && !target[..length].starts_with(b"socket:")
}

/// The kind of a transfer on this descriptor; `None` if it never fails here.
fn transfer(
    descriptor: c_int,
    of_file: &'static str,
    of_socket: &'static str,
) -> Option<&'static str> {
    if !armed() {
        return None;
    }
    if is_socket(descriptor) {
        Some(of_socket)
    } else if is_file(descriptor) {
        Some(of_file)
    } else {
        None
    }
}

/// Runs a transfer of `length` bytes, or fails it. `call` gets the number of bytes to transfer.
fn transfers(
    name: Option<&'static str>,
    descriptor: c_int,
    length: usize,
    call: impl Fn(usize) -> c_long,
) -> isize {
    let action = name.and_then(|name| count(kind(name), name, Place::Descriptor(descriptor)));
    match action {
        Some(layout::SHORT) => {
            let done = call(length.min(1));
            signal_again(descriptor);
            done as isize
        }
        Some(errno) => {
            if errno == EAGAIN {
                signal_again(descriptor);
            }
            fail(errno) as isize
        }
        None => call(length) as isize,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn read(descriptor: c_int, buffer: *mut c_void, length: usize) -> isize {
    let name = transfer(descriptor, "read", "receive");
    transfers(name, descriptor, length, |length| unsafe {
        syscall(number::READ, descriptor, buffer, length)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn write(descriptor: c_int, buffer: *const c_void, length: usize) -> isize {
    let name = transfer(descriptor, "write", "send");
    transfers(name, descriptor, length, |length| unsafe {
        syscall(number::WRITE, descriptor, buffer, length)
    })
}

/// `struct iovec`.
#[repr(C)]
struct Piece {
    base: *mut c_void,
    length: usize,
}

#[unsafe(no_mangle)]
unsafe extern "C" fn readv(descriptor: c_int, pieces: *const Piece, number: c_int) -> isize {
    let name = transfer(descriptor, "read", "receive");
    transfers(name, descriptor, usize::MAX, |length| unsafe {
        let first = pieces.read();
        if length == 1 && number > 0 && first.length > 0 {
            return syscall(number::READ, descriptor, first.base, 1_usize);
        }
        syscall(number::READV, descriptor, pieces, number)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn writev(descriptor: c_int, pieces: *const Piece, number: c_int) -> isize {
    let name = transfer(descriptor, "write", "send");
    transfers(name, descriptor, usize::MAX, |length| unsafe {
        let first = pieces.read();
        if length == 1 && number > 0 && first.length > 0 {
            return syscall(number::WRITE, descriptor, first.base, 1_usize);
        }
        syscall(number::WRITEV, descriptor, pieces, number)
    })
}

macro_rules! preads {
    ($($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(descriptor: c_int, buffer: *mut c_void, length: usize, offset: i64) -> isize {
            transfers(Some("pread"), descriptor, length, |length| unsafe {
                syscall(number::PREAD, descriptor, buffer, length, offset)
            })
        }
    )*};
}
preads!(pread pread64);

macro_rules! seeks {
    ($($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(descriptor: c_int, offset: i64, whence: c_int) -> i64 {
            fails!("seek", Place::Descriptor(descriptor));
            unsafe { syscall(number::LSEEK, descriptor, offset, whence) as i64 }
        }
    )*};
}
seeks!(lseek lseek64);

macro_rules! stats {
    ($($name:ident $flags:literal)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(path: *const c_char, buffer: *mut c_void) -> c_int {
            fails!("stat", Place::Path(path));
            unsafe { syscall(number::NEWFSTATAT, AT_FDCWD, path, buffer, $flags) as c_int }
        }
    )*};
}
stats!(stat 0 stat64 0 lstat 0x100 lstat64 0x100);

macro_rules! descriptor_stats {
    ($($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(descriptor: c_int, buffer: *mut c_void) -> c_int {
            fails!("stat", Place::Descriptor(descriptor));
            let empty_path = 0x1000;
            unsafe { syscall(number::NEWFSTATAT, descriptor, c"".as_ptr(), buffer, empty_path) as c_int }
        }
    )*};
}
descriptor_stats!(fstat fstat64);

#[unsafe(no_mangle)]
unsafe extern "C" fn statx(
    at: c_int,
    path: *const c_char,
    flags: c_int,
    mask: c_uint,
    buffer: *mut c_void,
) -> c_int {
    let empty = path.is_null() || unsafe { *path } == 0;
    let place = if empty { Place::Descriptor(at) } else { Place::Path(path) };
    fails!("stat", place);
    unsafe { syscall(number::STATX, at, path, flags, mask, buffer) as c_int }
}

macro_rules! maps {
    ($($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(
            address: *mut c_void, length: usize, protection: c_int, flags: c_int, descriptor: c_int, offset: i64,
        ) -> *mut c_void {
            if let Some(errno) = count(const { kind("map") }, "map", Place::Descriptor(descriptor)) {
                return fail(errno) as isize as *mut c_void;
            }
            unsafe {
                syscall(number::MMAP, address, length, protection, flags, descriptor, offset) as *mut c_void
            }
        }
    )*};
}
maps!(mmap mmap64);

#[unsafe(no_mangle)]
unsafe extern "C" fn opendir(path: *const c_char) -> *mut c_void {
    if let Some(errno) = count(const { kind("directory") }, "opendir", Place::Path(path)) {
        fail(errno);
        return std::ptr::null_mut();
    }
    let real: extern "C" fn(*const c_char) -> *mut c_void =
        unsafe { std::mem::transmute(OPENDIR.load(SeqCst)) };
    real(path)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn readdir64(directory: *mut c_void) -> *mut c_void {
    if let Some(errno) = count(const { kind("directory") }, "readdir", Place::None) {
        fail(errno);
        return std::ptr::null_mut();
    }
    let real: extern "C" fn(*mut c_void) -> *mut c_void =
        unsafe { std::mem::transmute(READDIR.load(SeqCst)) };
    real(directory)
}

/// Linux closes the descriptor even if it reports an error.
#[unsafe(no_mangle)]
unsafe extern "C" fn close(descriptor: c_int) -> c_int {
    let errno = if armed() && (is_socket(descriptor) || is_file(descriptor)) {
        count(const { kind("close") }, "close", Place::Descriptor(descriptor))
    } else {
        None
    };
    WATCHED_BY.get(descriptor as usize).inspect(|watched| watched.store(0, SeqCst));
    let closed = unsafe { syscall(number::CLOSE, descriptor) as c_int };
    errno.map_or(closed, fail)
}

// ---- sockets

#[unsafe(no_mangle)]
unsafe extern "C" fn socket(domain: c_int, of: c_int, protocol: c_int) -> c_int {
    fails!("socket", Place::None);
    unsafe { syscall(number::SOCKET, domain, of, protocol) as c_int }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn socketpair(
    domain: c_int,
    of: c_int,
    protocol: c_int,
    pair: *mut c_int,
) -> c_int {
    fails!("socket", Place::None);
    unsafe { syscall(number::SOCKETPAIR, domain, of, protocol, pair) as c_int }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn setsockopt(
    descriptor: c_int,
    level: c_int,
    option: c_int,
    value: *const c_void,
    length: c_uint,
) -> c_int {
    fails!("option", Place::Descriptor(descriptor));
    unsafe { syscall(number::SETSOCKOPT, descriptor, level, option, value, length) as c_int }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bind(descriptor: c_int, address: *const c_void, length: c_uint) -> c_int {
    fails!("bind", Place::Descriptor(descriptor));
    unsafe { syscall(number::BIND, descriptor, address, length) as c_int }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn listen(descriptor: c_int, backlog: c_int) -> c_int {
    fails!("listen", Place::Descriptor(descriptor));
    unsafe { syscall(number::LISTEN, descriptor, backlog) as c_int }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn getsockname(
    descriptor: c_int,
    address: *mut c_void,
    length: *mut c_uint,
) -> c_int {
    fails!("name", Place::Descriptor(descriptor));
    unsafe { syscall(number::GETSOCKNAME, descriptor, address, length) as c_int }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn accept4(
    descriptor: c_int,
    address: *mut c_void,
    length: *mut c_uint,
    flags: c_int,
) -> c_int {
    fails!("accept", Place::Descriptor(descriptor));
    unsafe { syscall(number::ACCEPT4, descriptor, address, length, flags) as c_int }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn recv(
    descriptor: c_int,
    buffer: *mut c_void,
    length: usize,
    flags: c_int,
) -> isize {
    let name = transfer(descriptor, "read", "receive");
    transfers(name, descriptor, length, |length| unsafe {
        syscall(number::RECVFROM, descriptor, buffer, length, flags, 0_usize, 0_usize)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn send(
    descriptor: c_int,
    buffer: *const c_void,
    length: usize,
    flags: c_int,
) -> isize {
    let name = transfer(descriptor, "write", "send");
    transfers(name, descriptor, length, |length| unsafe {
        syscall(number::SENDTO, descriptor, buffer, length, flags, 0_usize, 0_usize)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sendmsg(descriptor: c_int, message: *const c_void, flags: c_int) -> isize {
    fails!("send", Place::Descriptor(descriptor));
    unsafe { syscall(number::SENDMSG, descriptor, message, flags) as isize }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn recvmsg(descriptor: c_int, message: *mut c_void, flags: c_int) -> isize {
    fails!("receive", Place::Descriptor(descriptor));
    unsafe { syscall(number::RECVMSG, descriptor, message, flags) as isize }
}

// ---- events

/// Descriptors below this number are known with their `epoll` registration.
const WATCHED: usize = 1024;
/// The `epoll` descriptor plus one, by watched descriptor; 0 for none.
static WATCHED_BY: [AtomicI32; WATCHED] = [const { AtomicI32::new(0) }; WATCHED];
static WATCHED_EVENTS: [AtomicU32; WATCHED] = [const { AtomicU32::new(0) }; WATCHED];
static WATCHED_DATA: [AtomicU64; WATCHED] = [const { AtomicU64::new(0) }; WATCHED];

/// `struct epoll_event`.
#[cfg_attr(target_arch = "x86_64", repr(C, packed))]
#[cfg_attr(not(target_arch = "x86_64"), repr(C))]
struct Event {
    events: u32,
    data: u64,
}

/// Registers the descriptor again, so that `epoll` reports it once more. The kernel does so by itself when a transfer
/// that was cut short can go on; nothing else would wake an edge-triggered reader.
fn signal_again(descriptor: c_int) {
    let at = descriptor as usize;
    let Some(by) = WATCHED_BY.get(at).map(|by| by.load(SeqCst)).filter(|by| *by > 0) else {
        return;
    };
    let event =
        Event { events: WATCHED_EVENTS[at].load(SeqCst), data: WATCHED_DATA[at].load(SeqCst) };
    let modify = 3;
    unsafe {
        let before = *__errno_location();
        syscall(number::EPOLL_CTL, by - 1, modify, descriptor, &raw const event);
        *__errno_location() = before;
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_ctl(
    by: c_int,
    operation: c_int,
    descriptor: c_int,
    event: *mut Event,
) -> c_int {
    let remove = 2;
    if operation != remove {
        fails!("watch", Place::Descriptor(descriptor));
    }
    if let (Some(watched), false) = (WATCHED_BY.get(descriptor as usize), event.is_null()) {
        let at = descriptor as usize;
        let Event { events, data } = unsafe { event.read_unaligned() };
        WATCHED_EVENTS[at].store(events, SeqCst);
        WATCHED_DATA[at].store(data, SeqCst);
        watched.store(if operation == remove { 0 } else { by + 1 }, SeqCst);
    }
    unsafe { syscall(number::EPOLL_CTL, by, operation, descriptor, event) as c_int }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_wait(
    by: c_int,
    events: *mut Event,
    most: c_int,
    timeout: c_int,
) -> c_int {
    fails!("poll", Place::None);
    unsafe { syscall(number::EPOLL_PWAIT, by, events, most, timeout, 0_usize, 8_usize) as c_int }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_create1(flags: c_int) -> c_int {
    fails!("create", Place::None);
    unsafe { syscall(number::EPOLL_CREATE1, flags) as c_int }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn eventfd(initial: c_uint, flags: c_int) -> c_int {
    fails!("create", Place::None);
    unsafe { syscall(number::EVENTFD2, initial, flags) as c_int }
}

// ---- the rest

#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    fails!("random", Place::None);
    unsafe { syscall(number::GETRANDOM, buffer, length, flags) as isize }
}

/// Returns the error instead of setting `errno`.
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_create(
    thread: *mut c_void,
    attributes: *const c_void,
    start: *const c_void,
    argument: *mut c_void,
) -> c_int {
    if let Some(errno) = count(const { kind("thread") }, "thread", Place::None) {
        return errno as c_int;
    }
    let real: extern "C" fn(*mut c_void, *const c_void, *const c_void, *mut c_void) -> c_int =
        unsafe { std::mem::transmute(THREAD.load(SeqCst)) };
    real(thread, attributes, start, argument)
}
