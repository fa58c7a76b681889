//! Tensor names of Hugging Face checkpoints and of GGUF, both ways.

/// Whole names, without the prefix `model.`.
const ENDS: [(&str, &str); 3] = [
    ("embed_tokens.weight", "token_embd.weight"),
    ("norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];

/// Parts of a layer.
const PARTS: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// The GGUF name of a checkpoint's tensor, `None` where GGUF has none. Checkpoints of the bare
/// decoder leave `model.` out.
pub(super) fn to_gguf(name: &str) -> Option<String> {
    let bare = name.strip_prefix("model.").unwrap_or(name);
    if let Some((_, gguf)) = ENDS.iter().find(|(hf, _)| *hf == bare) {
        return Some((*gguf).to_owned());
    }
    let (layer, part) = bare.strip_prefix("layers.")?.split_once('.')?;
    let (part, kind) = part.rsplit_once('.')?;
    let number = layer.bytes().all(|b| b.is_ascii_digit()) && matches!(kind, "weight" | "bias");
    let (_, gguf) = PARTS.iter().find(|(hf, _)| number && *hf == part)?;
    Some(format!("blk.{layer}.{gguf}.{kind}"))
}

/// The checkpoint's name of a tensor; a name that GGUF does not know is itself.
pub(super) fn to_hf(name: &str) -> String {
    if let Some((hf, _)) = ENDS.iter().find(|(_, gguf)| *gguf == name) {
        return if *hf == "lm_head.weight" { (*hf).to_owned() } else { format!("model.{hf}") };
    }
    let layer = || {
        let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
        let (part, kind) = part.rsplit_once('.')?;
        let (hf, _) = PARTS.iter().find(|(_, gguf)| *gguf == part)?;
        Some(format!("model.layers.{layer}.{hf}.{kind}"))
    };
    layer().unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map_to_those_of_gguf_and_back() {
        for (hf, gguf) in [
            ("model.layers.12.self_attn.q_proj.bias", "blk.12.attn_q.bias"),
            ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("lm_head.weight", "output.weight"),
        ] {
            assert_eq!(to_gguf(hf).unwrap(), gguf);
            assert_eq!(to_hf(gguf), hf);
        }
    }

    #[test]
    fn checkpoint_of_the_bare_decoder_has_the_same_names_without_the_prefix() {
        assert_eq!(to_gguf("layers.3.input_layernorm.weight").unwrap(), "blk.3.attn_norm.weight");
    }

    #[test]
    fn unknown_name_has_no_counterpart() {
        for name in ["model.layers.0.rotary_emb.inv_freq", "vision_tower.x", "model.layers.x.mlp.up_proj.weight"] {
            assert_eq!(to_gguf(name), None, "{name}");
        }
        assert_eq!(to_hf("vision_tower.x"), "vision_tower.x");
    }
}
