//! Rules of InferenceRuntime.

use super::{CelRule, IMAGE_PATTERN, invalid};

/// Deployments name the runtime in at most 63 characters.
pub const NAME_LENGTH: CelRule = invalid(
    "size(self.metadata.name) <= 63",
    "metadata.name is longer than 63 characters, and no runtime.ref could name it; write a shorter name",
);
/// A reference that no registry can hold is never pulled.
pub const IMAGE: CelRule = invalid(
    IMAGE_PATTERN,
    "image is not an image reference; write for example registry.example.com/engines/vllm:v1, without https://",
);
/// Flags without values.
pub const ALLOWED_ARGS: CelRule = invalid(
    "self.all(flag, flag.startsWith('--') && !flag.contains('='))",
    "allowedArgs names flags without values; write for example --seed",
);
/// Names of variables that deployments may set.
pub const ALLOWED_ENV: CelRule = invalid(
    "self.all(name, name.matches('^[A-Za-z_][A-Za-z0-9_]*$') && !name.startsWith('STOWAGE_'))",
    "allowedEnv names environment variables, and none that begins with STOWAGE_; write for example LOG_LEVEL",
);
/// Variables that the operator sets.
pub const ENV: CelRule = invalid(
    "self.all(entry, !entry.name.startsWith('STOWAGE_'))",
    "environment variables that begin with STOWAGE_ are the operator's; write another name",
);
/// Path of a probe.
pub const PROBE_PATH: CelRule =
    invalid("self.startsWith('/')", "a probe's path is absolute; write for example /readyz");
