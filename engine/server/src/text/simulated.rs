//! The text side of the simulated model: one token per byte, ChatML.

use stowage_engine_models::{GgufTokenizer, ModelMeta, TokenType, TokenizerSource};

use super::alphabet::byte_to_char;

/// What a file of the simulated model would say about itself.
pub fn simulated_meta(context_len: usize) -> ModelMeta {
    let mut tokens: Vec<String> = (0..=255).map(|byte| byte_to_char(byte).to_string()).collect();
    let mut types = vec![TokenType::NORMAL; 256];
    for special in ["<|im_start|>", "<|im_end|>"] {
        tokens.push(special.to_owned());
        types.push(TokenType::CONTROL);
    }
    let template = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}\
                    {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let gguf = GgufTokenizer {
        model: "gpt2".to_owned(),
        pre: Some("smollm".to_owned()),
        tokens,
        types,
        ..GgufTokenizer::default()
    };
    ModelMeta {
        path: "sim".into(),
        architecture: "simulated".to_owned(),
        name: Some("simulated model".to_owned()),
        parameters: 0,
        context_len,
        digest: [0; 32],
        tokenizer: TokenizerSource::Gguf(Box::new(gguf)),
        chat_template: Some(template.to_owned()),
        bos: None,
        eog: vec![SIMULATED_END],
    }
}

/// Tokens of [`simulated_meta`]: 256 bytes and two markers.
pub const SIMULATED_VOCAB: usize = 258;
/// Its end token.
pub const SIMULATED_END: u32 = 257;
