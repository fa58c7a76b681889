//! Compiles the kubelet's interfaces without a protoc.

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let files = ["proto/registration.proto", "proto/dra.proto", "proto/health.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    // Clients are for the tests, which speak as the kubelet does.
    tonic_prost_build::configure().build_client(true).compile_fds(descriptors)?;
    Ok(())
}
