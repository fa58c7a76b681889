//! A model file in the safetensors format, in a directory whose other files are sound.

use stowage_engine_models::safetensors::parse;

use crate::gguf::loads_or_is_refused;
use crate::{one_line, scratch, within};

/// The smallest model there can be; the seed `tiny-model` holds weights for it.
const CONFIG: &str = r#"{
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 8, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "eos_token_id": 1
}"#;

/// Every tensor has the bytes that its shape needs, inside the file; what the table describes is
/// loaded or refused.
pub fn safetensors(data: &[u8]) {
    match within(32, data, || parse(data)) {
        Err(err) => one_line(&err.to_string()),
        Ok(tensors) => {
            for (name, tensor) in &tensors {
                let (weights, bytes) = tensor.ty.unit();
                let size: u64 = tensor.shape.iter().product();
                assert_eq!(tensor.range.len() as u64, size / weights as u64 * bytes as u64, "{name:?}: {tensor:?}");
                assert!(tensor.range.end <= data.len(), "{name:?} leaves the file");
            }
            if let Some(end) = tensors.values().map(|tensor| tensor.range.end).max() {
                assert!(parse(&data[..end - 1]).is_err(), "a file without its last byte of data was accepted");
            }
            let dir = scratch();
            std::fs::write(dir.path().join("config.json"), CONFIG).expect("write the configuration");
            std::fs::write(dir.path().join("model.safetensors"), data).expect("write the weights");
            loads_or_is_refused(dir.path());
        }
    }
}
