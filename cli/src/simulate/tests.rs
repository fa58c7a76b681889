use clap::Parser;

use super::*;
use crate::testing::golden;

const MANIFEST: &str = "
apiVersion: stowage.dev/v1alpha1
kind: InferenceDeployment
metadata: {name: chat, namespace: team-a}
spec:
  model: {source: {image: {reference: 'models/chat:q4', path: /model.gguf}}}
  runtime: {ref: stowage-engine}
  objectives: {ttft: 2s, itl: 50ms}
  scaling: {mode: Active, minReplicas: 1, maxReplicas: 8}
  variants: [{name: slice, class: h100-80g, memory: 20Gi, compute: 40}]
";
const MANUAL: &str = "
apiVersion: stowage.dev/v1alpha1
kind: InferenceDeployment
metadata: {name: chat}
spec:
  model: {source: {image: {reference: 'models/chat:q4', path: /model.gguf}}}
  runtime: {ref: stowage-engine}
  replicas: 3
  scaling: {mode: Manual}
  variants: [{name: cpu, accelerator: CPU, cpu: '4', memory: 2Gi}]
";
const CLASS: &str = "
apiVersion: stowage.dev/v1alpha1
kind: GpuClass
metadata: {name: h100-80g}
spec: {selector: {productNames: [NVIDIA H100 80GB HBM3]}, pricePerHour: '3.00', currency: USD}
";
const NODE: &str = "
apiVersion: stowage.dev/v1alpha1
kind: GpuNode
metadata: {name: node1}
spec: {}
status: {devices: [{uuid: GPU-1, index: 0, product: NVIDIA H100 80GB HBM3, memory: 80Gi}]}
";
const HEAD: &str = "t_s,input_tokens,output_tokens\n";
/// A step takes 10 ms and 1 ms per 1,000 prompt tokens; what decodes costs next to nothing.
const COST: &str = "10,0.000001,0.000001,1";

fn args(options: &[&str]) -> Args {
    let words = ["kubectl-stowage", "simulate", "--trace", "t"].iter().chain(options);
    match crate::Cli::try_parse_from(words).unwrap_or_else(|e| panic!("{e}")).command {
        crate::Command::Simulate(args) => *args,
        other => panic!("{other:?}"),
    }
}

fn given(manifest: &str, args: &Args) -> Result<Given, String> {
    let manifest = (!manifest.is_empty()).then(|| manifest::read(manifest)).transpose()?;
    Given::read(args, manifest.as_ref(), &compared(&args.compare).unwrap_or_default())
}

fn simulated(manifest: &str, trace: &str, options: &[&str]) -> Report {
    let args = args(options);
    let trace = trace::read(trace.as_bytes(), &Limits::STANDARD).unwrap();
    simulate(given(manifest, &args).unwrap(), &trace, &compared(&args.compare).unwrap_or_default())
}

/// Half an hour: two requests a second, in the middle ten times as many.
fn burst() -> String {
    let mut text = HEAD.to_owned();
    for second in 0..1800u32 {
        let rate = if (600..900).contains(&second) { 20 } else { 2 };
        for n in 0..rate {
            text += &format!("{:.2},{},{}\n", f64::from(second) + f64::from(n) / f64::from(rate), 900 + n * 7, 150 + n);
        }
    }
    text
}

#[test]
fn outcome_of_a_small_trace_is_what_one_reckons_by_hand() {
    struct Want {
        kept: f64,
        hours: f64,
        most: usize,
        held: usize,
        ttft: &'static str,
    }
    let one = format!("{HEAD}0,1000,2\n");
    let check = |manifest: &str, trace: &str, options: &[&str], want: Want| {
        let report = simulated(manifest, trace, &[&["--cost", COST, "--cold-start", "10"], options].concat());
        let found = &report.results[0];
        let what = format!("{options:?}: {found:?}");
        assert!((found.objectives_percent - want.kept).abs() < 0.01, "{what}");
        assert!((found.replica_hours - want.hours).abs() < 0.001, "{what}");
        assert_eq!((found.most_replicas, found.held_at_zero), (want.most, want.held), "{what}");
        assert_eq!(report.rows().iter().find(|(name, _)| *name == "TTFT median").unwrap().1[0], want.ttft, "{what}");
    };
    // A step with a prompt of 1,000 tokens: 10 + 1 ms. The run ends at its first decision, after 5 s.
    let five_seconds = 5.0 / 3600.0;
    let served = |kept| Want { kept, hours: five_seconds, most: 1, held: 0, ttft: "11.0 ms" };
    check("", &one, &["--ttft", "12ms"], served(100.0));
    check("", &one, &["--ttft", "10ms"], served(0.0));
    check("", &one, &["--ttft", "12ms", "--itl", "9ms", "--min-replicas", "1"], served(0.0));
    // From zero: seen after 5 s, started in 10 s; the decision is the run's last, so the start costs nothing yet.
    let woken = Want { kept: 0.0, hours: 0.0, most: 1, held: 1, ttft: "15.0 s" };
    check("", &one, &["--min-replicas", "0", "--start", "0"], woken);
    // A request each 10 s for an hour on a fixed count.
    let hour: String = (0..=360).map(|n| format!("{},1000,2\n", n * 10)).collect();
    let fixed = Want { kept: 100.0, hours: 3.0 * 3605.0 / 3600.0, most: 3, held: 0, ttft: "11.0 ms" };
    check(MANUAL, &format!("{HEAD}{hour}"), &[], fixed);
    // Idle from the first minute on: to zero, and the request at the end waits for a replica.
    let gap = format!("{HEAD}0,1000,2\n3000,1000,2\n");
    let report = simulated("", &gap, &["--min-replicas", "0", "--cold-start", "10", "--cost", COST]);
    let found = &report.results[0];
    assert_eq!((found.scale_ins, found.scale_outs, found.held_at_zero), (1, 1, 1), "{found:?}");
    assert!(report.decisions[0].why.contains("idle time"), "{:?}", report.decisions);
}

#[test]
fn policies_beside_it_have_the_same_trace_and_bounds() {
    let report = simulated(MANIFEST, &burst(), &["--compare", "hpa,static:12,oracle"]);
    let figures = |policy: &str| report.results.iter().find(|found| found.policy == policy).unwrap();
    let names: Vec<&str> = report.results.iter().map(|found| found.policy.as_str()).collect();
    assert_eq!(names, ["stowage", "hpa:0.6", "static:12", "oracle"]);
    assert!((figures("static:12").replica_hours - 12.0 * 0.5).abs() < 0.05, "{:?}", figures("static:12"));
    // A replica on CPUs has a node of its own as well.
    let on_cpus = simulated(MANUAL, &burst(), &["--active", "--ttft", "2s", "--itl", "50ms"]);
    assert_eq!(on_cpus.results[0].most_replicas, figures("stowage").most_replicas);
    assert!(figures("hpa:0.6").most_replicas <= 8 && figures("stowage").most_replicas <= 8, "{:?}", report.results);
}

#[test]
fn manifest_is_read_as_the_operator_reads_it_and_options_win() {
    let read = |manifest: &str, options: &[&str]| given(manifest, &args(options)).unwrap();
    let from_file = read(MANIFEST, &[]);
    let scaling = &from_file.scenario.subject.scaling;
    assert_eq!((scaling.min_replicas, scaling.max_replicas), (1, 8));
    assert_eq!(scaling.objectives.map(|o| (o.ttft_ms, o.itl_ms)), Some((2000.0, 50.0)));
    assert_eq!((from_file.name.as_str(), from_file.slice().as_str()), ("team-a/chat", "1 × h100-80g 20 GiB 40 % SM"));
    let asked = read(MANIFEST, &["--max-replicas", "3", "--ttft", "1s", "--start", "2"]);
    assert_eq!(asked.scenario.subject.scaling.max_replicas, 3);
    assert_eq!(asked.scenario.protocol.objective.ttft_ms, 1000.0);
    let manual = read(MANUAL, &[]);
    assert_eq!(manual.scenario.replicas_at_start(&[]), 3);
    assert!(manual.notes.iter().any(|note| note.contains("--active")), "{:?}", manual.notes);
    assert_eq!(read(MANUAL, &["--active"]).scenario.subject.scaling.max_replicas, 10);
}

#[test]
fn price_is_that_of_the_slice_where_the_file_says_how_large_a_gpu_is() {
    let price = |text: &str, options: &[&str]| given(text, &args(options)).unwrap().price;
    let all = format!("{MANIFEST}---{CLASS}---{NODE}");
    assert_eq!(price(&all, &[]), Some((1_200_000, "USD".to_owned())));
    assert_eq!(price(&all, &["--price", "2.50"]), Some((2_500_000, String::new())));
    let whole = format!("{MANIFEST}---{CLASS}").replace(", memory: 20Gi, compute: 40", ", count: 4");
    assert_eq!(price(&whole, &[]), Some((12_000_000, "USD".to_owned())));
    for (text, why) in [
        (format!("{MANIFEST}---{CLASS}"), "no GpuNode with a GPU of h100-80g is in the file"),
        (MANIFEST.to_owned(), "no GpuClass h100-80g is in the file"),
        (all.replace(", pricePerHour: '3.00', currency: USD", ""), "GpuClass h100-80g has no price"),
        (
            all.replace("memory: 20Gi", "memory: Auto")
                .replace("image: {reference: 'models/chat:q4', path: /model.gguf}", HTTP),
            "memory is Auto",
        ),
    ] {
        let given = given(&text, &args(&[])).unwrap();
        assert_eq!(given.price, None);
        assert!(given.notes.iter().any(|note| note.contains(why)), "{why}: {:?}", given.notes);
    }
}

const HTTP: &str = "http: {url: 'https://models.example/m.gguf', sha256: '0000000000000000000000000000000000000000000000000000000000000000'}";

#[test]
fn what_cannot_be_simulated_is_refused_with_the_reason() {
    let check = |manifest: &str, options: &[&str], want: &str| {
        let error = given(manifest, &args(options)).map(|given| given.name).unwrap_err();
        assert!(error.contains(want), "{error}");
    };
    check(
        "apiVersion: v1\nkind: ConfigMap",
        &[],
        "no InferenceDeployment of stowage.dev/v1alpha1 in it, but: ConfigMap",
    );
    check("7", &[], "but: no object");
    check("a: [", &[], "document 1 is no YAML");
    check(&format!("{MANIFEST}---{MANUAL}"), &[], "documents 1 and 2 are both InferenceDeployments");
    check(&MANIFEST.replace("ttft: 2s", "ttft: soon"), &[], "document 1: spec.objectives.ttft");
    check(&MANIFEST.replace("minReplicas: 1", "minReplicas: 9"), &[], "document 1: spec.scaling");
    check(&MANUAL.replace("replicas: 3", "replicas: 4000000000"), &[], "more than 1000 replicas");
    check("", &["--cost", "1,2,3"], "--cost \"1,2,3\": give four numbers above zero");
    check("", &["--cost", "1,2,0,4"], "zero would be unknown");
    check("", &["--cost", "1,2,x,4"], "give four numbers");
    check("", &["--cold-start=-1"], "--cold-start");
    check("", &["--cold-start", "2d"], "--cold-start");
    check("", &["--cold-start", "100000"], "more than a day");
    check("", &["--price", "cheap"], "--price");
    check("", &["--ttft", "0s"], "--ttft: a time of zero");
    check("", &["--min-replicas", "20", "--max-replicas", "5"], "at least 20 and at most 5 replicas");
}

#[test]
fn both_files_cannot_be_standard_input_and_unknown_policies_are_named() {
    let usage = |args: &Args| match run(args, None, Paint::OFF) {
        Err(Failure::Usage(message)) => message,
        _ => panic!("accepted"),
    };
    assert!(usage(&Args { trace: "-".into(), ..args(&["-f", "-"]) }).contains("both be standard input"));
    assert!(usage(&args(&["--compare", "hpa,keda"])).contains("--compare: unknown policy \"keda\""));
    assert!(usage(&args(&["--compare", &["hpa"; 9].join(",")])).contains("9 policies are more than 8"));
    assert!(usage(&Args { trace: "/nowhere/t.csv".into(), ..args(&[]) }).contains("/nowhere/t.csv: open the trace"));
}

#[test]
fn objective_that_no_replica_can_keep_stops_the_planner_and_is_reported() {
    let report = simulated("", &burst(), &["--itl", "5ms"]);
    let why = report.frozen.as_deref().unwrap_or_default();
    assert!(why.contains("the count stays at"), "{why}");
    assert_eq!(report.decisions.len(), 1, "{:?}", report.decisions);
    let text = text::text(&report, 20, style(80, true));
    assert!(text.contains("no decision"), "{text}");
}

fn style(width: usize, unicode: bool) -> text::Style {
    text::Style { width, unicode, paint: Paint::OFF }
}

#[test]
fn text_has_its_form_on_wide_and_narrow_terminals() {
    let report = simulated(&format!("{MANIFEST}---{CLASS}---{NODE}"), &burst(), &["--compare", "hpa,kpa,static:4"]);
    let mut all = String::new();
    for (width, unicode) in [(80, true), (40, false)] {
        let text = text::text(&report, 6, style(width, unicode));
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        assert!(widest <= width, "{widest} columns:\n{text}");
        assert!(unicode || text.is_ascii(), "{text}");
        all += &format!("--- {width} columns, {}\n{text}", if unicode { "Unicode" } else { "ASCII" });
    }
    golden("simulate.txt", &all);
}

#[test]
fn manifest_above_the_limit_of_a_plan_is_read_to_its_end() {
    let padding = "# of a large cluster, GpuNodes name many models\n".repeat(stowage_crds::names::MAX_PLAN_BYTES / 40);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{MANIFEST}---{CLASS}---\n{padding}---{NODE}")).unwrap();
    let manifest = read_manifest(file.path().to_str().unwrap()).unwrap();
    assert_eq!(manifest.price, Ok((1_200_000, "USD".to_owned())));
}

#[test]
fn page_loads_nothing_from_elsewhere_and_escapes_what_it_shows() {
    let mut report = simulated(MANIFEST, &burst(), &["--compare", "static:4"]);
    report.deployment = "<script>alert(\"1\")</script> & 'co'".to_owned();
    let page = page::page(&report);
    for loads in ["://", "src=", "href=", "url(", "@import", "<script", "<link", "<img", "<iframe"] {
        assert!(!page.contains(loads), "{loads}");
    }
    assert!(page.contains("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; &#39;co&#39;"));
    for part in [
        "default-src 'none'",
        "prefers-color-scheme: dark",
        "<svg",
        "role=\"img\"",
        "<th scope=\"row\">replica-hours</th>",
    ] {
        assert!(page.contains(part), "{part}");
    }
}

#[test]
fn dated_trace_has_the_clock_of_its_dates() {
    let trace = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 23:59:50,100,10\n2023-11-17 00:00:20,100,10\n";
    let report = simulated(MANIFEST, trace, &[]);
    assert_eq!((report.time(0.0).as_str(), report.time(30.0).as_str()), ("23:59:50", "1d 00:00:20"));
    // The planner's own words have it too.
    let mut dated = "TIMESTAMP,ContextTokens,GeneratedTokens\n".to_owned();
    for line in burst().lines().skip(1) {
        let (second, rest) = line.split_once(',').unwrap();
        let second: f64 = second.parse().unwrap();
        dated += &format!("2023-11-16 18:{:02}:{:05.2},{rest}\n", second as u32 / 60, second % 60.0);
    }
    let report = simulated(MANIFEST, &dated, &[]);
    let hold = report.decisions.iter().find(|decision| decision.why.contains("hold window is kept until")).unwrap();
    assert!(hold.why.contains("until 18:17:"), "{hold:?}");
}
