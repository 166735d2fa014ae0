//! Files of a checkpoint from a stranger: headers of weights, pickles, HDF5 files, `config.json`.

use std::io::Write;

use blip_server::model::config::BlipConfig;
use blip_server::model::load::{CheckpointWeights, File, WeightFiles};
use blip_server::tensorflow::TensorFlowFile;
use blip_server::torch::TorchFile;

use super::allocations::peak;
use super::archive::with_pickle;

/// The first byte tells the kind of file, the rest is its content.
pub(crate) fn checkpoint(data: &[u8]) {
    let Some((kind, content)) = data.split_first() else { return };
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    let path = file.path().to_owned();
    match kind % 3 {
        0 => read(&WeightFiles::Safetensors(vec![File::OnDisk(path)])),
        1 => read(&WeightFiles::Pickle(vec![path])),
        _ => {
            if let Ok(config) = BlipConfig::read(&File::OnDisk(path.clone())) {
                // The class may be one that is not served.
                let _ = config.class(&path);
            }
        }
    }
}

/// A file that opens can be asked for everything that it says it has.
fn read(files: &WeightFiles) {
    let Ok(weights) = CheckpointWeights::open(files) else { return };
    for name in weights.names() {
        assert!(weights.contains(&name));
        // One that is read has the shape that was asked for.
        if let Ok(tensor) = weights.get(&name, &[1]) {
            assert_eq!(tensor.dims(), [1]);
        }
    }
    // Whatever the headers say of sizes, adding them up is no fault.
    let _ = weights.parameter_count();
}

/// The pickle of a file of torch: a file that is refused says why in a line, and tensors are no larger than the file.
pub(crate) fn pickle(data: &[u8]) {
    let bytes = with_pickle(data, &[0; 64]);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    let file = match TorchFile::open(file.path()) {
        Ok(file) => file,
        Err(error) => return assert!(error.to_string().len() < 800, "{error}"),
    };
    for name in file.names() {
        if let Ok(tensor) = file.read(name) {
            assert!(tensor.unwrap().elem_count() <= 64, "{name}");
        }
    }
}

/// A weight file of TensorFlow: a file that is refused says why in a line, and its tensors together are no larger than the
/// file.
pub(crate) fn h5(data: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(data).unwrap();
    let (peak, opened) = peak(|| TensorFlowFile::open(file.path()));
    assert!(peak <= 2 * data.len() as u64 + (12 << 20), "{peak} bytes");
    let file = match opened {
        Ok(file) => file,
        Err(error) => return assert!(error.to_string().len() < 1200, "{error}"),
    };
    let mut total = 0;
    for name in file.names() {
        let tensor = file.read(name).unwrap().unwrap();
        total += tensor.elem_count() * tensor.dtype().size_in_bytes();
    }
    assert!(total <= data.len(), "{total}");
}
