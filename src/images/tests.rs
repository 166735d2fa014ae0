//! Tests of the whole folder, with decoders that the tests block and release. No test waits for time to pass.

use super::{ImageSource, Images, ImagesError, ImagesSettings, Resolved};
use crate::fairness::{CallId, ClientId};
use crate::input::{InputError, InputSettings, Stop, decode, image_id};
use crate::task::{ImageFormat, Preprocessing, Resample, Scope};
use crate::telemetry::metrics::Metrics;
use bytes::Bytes;
use image::{ExtendedColorType, ImageEncoder, codecs::bmp::BmpEncoder, codecs::png::PngEncoder};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

const EIGHT: Preprocessing = Preprocessing { width: 8, height: 8, resample: Resample::Bicubic };

const CALL: CallId = CallId { client: ClientId(1), number: 1 };

/// Encodes a PNG picture of 4x4 pixels in one shade of grey.
fn png(shade: u8) -> Bytes {
    let mut file = Vec::new();
    PngEncoder::new(&mut file).write_image(&[shade; 48], 4, 4, ExtendedColorType::Rgb8).unwrap();
    file.into()
}

/// [`Images`] with a decoder that reports each call and then follows the next [`Verdict`] of the test.
struct TestImages {
    images: Images,
    metrics: Arc<Metrics>,
    decodes: Arc<AtomicUsize>,
    started: mpsc::Receiver<()>,
    verdicts: mpsc::Sender<Verdict>,
}

enum Verdict {
    Decode,
    Fail,
    Panic,
}

impl TestImages {
    fn new(settings: &ImagesSettings) -> Self {
        let metrics = Arc::new(Metrics::try_new().unwrap());
        let decodes = Arc::new(AtomicUsize::new(0));
        let (has_started, started) = mpsc::channel();
        let (verdicts, next_verdict) = mpsc::channel();
        let (counter, next_verdict) = (Arc::clone(&decodes), Mutex::new(next_verdict));
        let held_decode = move |file: &[u8], header: &_, settings: &_, stop: Stop<'_>| {
            counter.fetch_add(1, Ordering::SeqCst);
            has_started.send(()).unwrap();
            let verdict = next_verdict.lock().unwrap().recv().unwrap();
            match verdict {
                Verdict::Decode => decode(file, header, settings, stop),
                Verdict::Fail => Err(failure()),
                Verdict::Panic => panic!("on purpose"),
            }
        };
        let images = Images::start_with(
            settings,
            InputSettings::default(),
            Arc::clone(&metrics),
            Box::new(held_decode),
        );
        Self { images: images.unwrap(), metrics, decodes, started, verdicts }
    }

    fn resolve(&self, file: &Bytes) -> impl Future<Output = Result<Resolved, ImagesError>> {
        self.images.resolve(ImageSource::Bytes(file.clone()), EIGHT, Scope::EVERYONE, CALL)
    }

    fn say(&self, verdict: Verdict) {
        self.verdicts.send(verdict).unwrap();
    }

    fn lookups(&self, result: &str) -> u64 {
        self.metrics.cache_requests_total.with_label_values(&["pixels", result]).get()
    }

    fn decodes(&self) -> usize {
        self.decodes.load(Ordering::SeqCst)
    }
}

fn one_thread() -> ImagesSettings {
    ImagesSettings { decode_threads: 1, ..ImagesSettings::default() }
}

fn failure() -> InputError {
    InputError::UndecodableImage { format: ImageFormat::Png, problem: "as told".to_owned() }
}

/// Polls the future once. Small files are hashed inline, so after this poll the image is queued, or has joined a
/// flight.
fn begin<F: Future>(future: Pin<&mut F>) {
    let mut context = Context::from_waker(Waker::noop());
    assert!(matches!(future.poll(&mut context), Poll::Pending));
}

#[tokio::test]
async fn an_image_is_decoded_once_and_then_cached() {
    let rig = TestImages::new(&one_thread());
    rig.say(Verdict::Decode);
    let first = rig.resolve(&png(7)).await.unwrap();
    let second = rig.resolve(&png(7)).await.unwrap();
    assert!(!first.cached && second.cached);
    assert!(first.decode > Duration::ZERO && second.decode == Duration::ZERO);
    assert_eq!(first.image.pixels.as_bytes(), [7; 192]);
    assert!(Arc::ptr_eq(&first.image.pixels, &second.image.pixels));
    assert_eq!(first.image.info.id, image_id(&png(7)));
    assert_eq!((first.image.info.width, first.image.info.height), (4, 4));
    assert_eq!((rig.lookups("miss"), rig.lookups("hit"), rig.lookups("joined")), (1, 1, 0));
    assert_eq!(rig.decodes(), 1);
    assert_eq!(rig.metrics.image_format_total.with_label_values(&["png"]).get(), 1);
    assert_eq!(rig.metrics.image_pixels.get_sample_count(), 1);
    assert_eq!(rig.metrics.decode_permits_in_use.get(), 0);
}

#[tokio::test]
async fn an_id_names_what_was_sent_in_its_scope_size_and_filter_only() {
    let rig = TestImages::new(&one_thread());
    let id = image_id(&png(1));
    let by_id =
        |preprocessing, scope| rig.images.resolve(ImageSource::Id(id), preprocessing, scope, CALL);
    assert_eq!(by_id(EIGHT, Scope::EVERYONE).await.unwrap_err(), ImagesError::NotFound(id));
    rig.say(Verdict::Decode);
    rig.resolve(&png(1)).await.unwrap();
    assert!(by_id(EIGHT, Scope::EVERYONE).await.unwrap().cached);
    assert_eq!(by_id(EIGHT, Scope(1)).await.unwrap_err(), ImagesError::NotFound(id));
    let nearest = Preprocessing { resample: Resample::Nearest, ..EIGHT };
    for other in [Preprocessing::bicubic(9, 9), nearest] {
        assert_eq!(by_id(other, Scope::EVERYONE).await.unwrap_err(), ImagesError::NotFound(id));
    }
}

#[tokio::test]
async fn identical_images_in_flight_decode_once_also_when_the_first_waiter_leaves() {
    let rig = TestImages::new(&ImagesSettings { decode_threads: 2, ..ImagesSettings::default() });
    let file = png(3);
    let mut first = Box::pin(rig.resolve(&file));
    begin(first.as_mut());
    rig.started.recv().unwrap();
    let mut second = pin!(rig.resolve(&file));
    begin(second.as_mut());
    let id = ImageSource::Id(image_id(&file));
    let mut third = pin!(rig.images.resolve(id, EIGHT, Scope::EVERYONE, CALL));
    begin(third.as_mut());
    drop(first);
    rig.say(Verdict::Decode);
    assert!(!second.await.unwrap().cached);
    assert!(!third.await.unwrap().cached);
    assert_eq!(rig.decodes(), 1);
    assert_eq!((rig.lookups("miss"), rig.lookups("joined")), (1, 2));
}

#[tokio::test]
async fn an_image_whose_waiters_all_left_before_its_turn_is_not_decoded() {
    let rig = TestImages::new(&one_thread());
    let (busy, abandoned, wanted) = (png(1), png(2), png(3));
    let mut running = pin!(rig.resolve(&busy));
    begin(running.as_mut());
    rig.started.recv().unwrap();
    let mut one = Box::pin(rig.resolve(&abandoned));
    let mut other = Box::pin(rig.resolve(&abandoned));
    begin(one.as_mut());
    begin(other.as_mut());
    let mut last = pin!(rig.resolve(&wanted));
    begin(last.as_mut());
    drop(one);
    assert!(!abandoned.is_unique(), "one still waits for it");
    drop(other);
    // When the last waiter left, the file was removed from the queue.
    assert!(abandoned.is_unique());
    rig.say(Verdict::Decode);
    rig.say(Verdict::Decode);
    running.await.unwrap();
    last.await.unwrap();
    assert_eq!(rig.decodes(), 2);
    // The same image can be requested again.
    rig.say(Verdict::Decode);
    assert!(!rig.resolve(&abandoned).await.unwrap().cached);
}

#[tokio::test]
async fn a_decode_stops_when_its_last_waiter_leaves_and_starts_again_for_the_next_request() {
    let metrics = Arc::new(Metrics::try_new().unwrap());
    let (has_started, started) = mpsc::channel();
    let (has_stopped, stopped) = mpsc::channel();
    let decodes = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&decodes);
    // The first decode never ends by itself.
    let endless = move |file: &[u8], header: &_, settings: &_, stop: Stop<'_>| {
        if counter.fetch_add(1, Ordering::SeqCst) > 0 {
            return decode(file, header, settings, stop);
        }
        has_started.send(()).unwrap();
        while !stop() {
            std::thread::yield_now();
        }
        has_stopped.send(()).unwrap();
        Err(InputError::Stopped)
    };
    let images =
        Images::start_with(&one_thread(), InputSettings::default(), metrics, Box::new(endless));
    let (images, file) = (images.unwrap(), png(8));
    let resolve = || images.resolve(ImageSource::Bytes(file.clone()), EIGHT, Scope::EVERYONE, CALL);
    let mut first = Box::pin(resolve());
    begin(first.as_mut());
    started.recv().unwrap();
    drop(first);
    stopped.recv().unwrap();
    assert_eq!(resolve().await.unwrap().image.pixels.as_bytes(), [8; 192]);
    assert_eq!(decodes.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn an_error_goes_to_all_who_wait_and_is_not_cached() {
    let rig = TestImages::new(&one_thread());
    let file = png(4);
    let mut first = pin!(rig.resolve(&file));
    let mut second = pin!(rig.resolve(&file));
    begin(first.as_mut());
    begin(second.as_mut());
    rig.say(Verdict::Fail);
    assert_eq!(first.await.unwrap_err(), ImagesError::Input(failure()));
    assert_eq!(second.await.unwrap_err(), ImagesError::Input(failure()));
    rig.say(Verdict::Decode);
    assert!(!rig.resolve(&file).await.unwrap().cached);
    assert_eq!(rig.decodes(), 2);
}

#[tokio::test]
async fn a_panic_of_the_decoder_costs_its_own_image_only() {
    let rig = TestImages::new(&one_thread());
    rig.say(Verdict::Panic);
    let error = rig.resolve(&png(5)).await.unwrap_err();
    let ImagesError::Input(InputError::UndecodableImage { format, .. }) = error else {
        panic!("{error:?}")
    };
    assert_eq!(format, ImageFormat::Png);
    assert_eq!(rig.metrics.panics_total.with_label_values(&["decode"]).get(), 1);
    assert_eq!(rig.metrics.decode_permits_in_use.get(), 0);
    rig.say(Verdict::Decode);
    assert!(rig.resolve(&png(6)).await.is_ok());
}

#[tokio::test]
async fn a_full_queue_refuses_and_keeps_serving() {
    let rig = TestImages::new(&ImagesSettings { decode_queue: 1, ..one_thread() });
    let (one, two, three) = (png(1), png(2), png(3));
    let mut running = pin!(rig.resolve(&one));
    begin(running.as_mut());
    rig.started.recv().unwrap();
    let mut queued = pin!(rig.resolve(&two));
    begin(queued.as_mut());
    assert_eq!(rig.resolve(&three).await.unwrap_err(), ImagesError::Overloaded);
    rig.say(Verdict::Decode);
    rig.say(Verdict::Decode);
    running.await.unwrap();
    queued.await.unwrap();
    rig.say(Verdict::Decode);
    assert!(rig.resolve(&three).await.is_ok());
}

#[tokio::test]
async fn a_slow_decode_is_no_fault_of_the_file_and_its_work_is_kept_for_the_next_who_asks() {
    let rig = TestImages::new(&one_thread());
    let file = png(8);
    // Drop the future after the decode has begun, as a request's deadline does.
    let mut patient = Box::pin(rig.resolve(&file));
    begin(patient.as_mut());
    rig.started.recv().unwrap();
    drop(patient);
    let mut second = pin!(rig.resolve(&file));
    begin(second.as_mut());
    rig.say(Verdict::Decode);
    let resolved = second.await.unwrap();
    assert_eq!(resolved.image.pixels.as_bytes(), [8; 192]);
    assert!(rig.resolve(&file).await.unwrap().cached);
    assert_eq!(rig.decodes(), 1);
}

#[tokio::test]
async fn the_cache_is_bounded_in_bytes() {
    // Room for two images of 8x8x3 bytes and their bookkeeping.
    let rig = TestImages::new(&ImagesSettings { pixel_cache_bytes: 2 * 704, ..one_thread() });
    for shade in 1..=3 {
        rig.say(Verdict::Decode);
        rig.resolve(&png(shade)).await.unwrap();
    }
    assert_eq!(rig.metrics.cache_bytes.with_label_values(&["pixels"]).get(), 2 * 704);
    assert_eq!(rig.metrics.cache_evictions_total.with_label_values(&["pixels"]).get(), 1);
    let by_id = |shade| {
        rig.images.resolve(ImageSource::Id(image_id(&png(shade))), EIGHT, Scope::EVERYONE, CALL)
    };
    assert!(by_id(1).await.is_err());
    assert!(by_id(2).await.is_ok() && by_id(3).await.is_ok());
}

#[tokio::test]
async fn without_a_cache_no_id_is_known() {
    let rig = TestImages::new(&ImagesSettings { pixel_cache_bytes: 0, ..one_thread() });
    rig.say(Verdict::Decode);
    let id = rig.resolve(&png(1)).await.unwrap().image.info.id;
    let by_id = rig.images.resolve(ImageSource::Id(id), EIGHT, Scope::EVERYONE, CALL).await;
    assert_eq!(by_id.unwrap_err(), ImagesError::NotFound(id));
}

#[tokio::test]
async fn large_files_are_hashed_on_the_pool_and_oversize_ones_not_at_all() {
    let rig = TestImages::new(&one_thread());
    let mut file = Vec::new();
    BmpEncoder::new(&mut file)
        .write_image(&vec![9; 200 * 200 * 3], 200, 200, ExtendedColorType::Rgb8)
        .unwrap();
    rig.say(Verdict::Decode);
    let resolved = rig.resolve(&file.clone().into()).await.unwrap();
    assert_eq!(resolved.image.info.id, image_id(&file));
    let max_bytes = InputSettings::default().max_image_bytes;
    let error = rig.resolve(&vec![0; max_bytes + 1].into()).await.unwrap_err();
    let expected = InputError::ImageFileTooLarge { bytes: max_bytes + 1, max_bytes };
    assert_eq!(error, ImagesError::Input(expected));
}

#[tokio::test]
async fn the_real_decoder_refuses_what_is_no_picture() {
    let metrics = Arc::new(Metrics::try_new().unwrap());
    let images = Images::start(&one_thread(), InputSettings::default(), metrics).unwrap();
    let source = ImageSource::Bytes(Bytes::from_static(b"<svg/>"));
    let error = images.resolve(source, EIGHT, Scope::EVERYONE, CALL).await.unwrap_err();
    assert_eq!(error, ImagesError::Input(InputError::UnsupportedImageFormat));
}
