use super::super::drains::DrainState;
use super::*;
use serde_json::json;

/// A message of epoch `e`, up for so long, about the deployment a/chat.
fn message(epoch: &str, uptime_ms: u64, arrivals: u64, more: serde_json::Value) -> Signals {
    let mut chat = json!({"namespace": "a", "name": "chat", "uid": "u", "model": "m", "arrivals": arrivals,
        "inputTokens": arrivals * 10, "cachedTokens": 0, "meanOutputTokens": 5.0, "queued": 0, "held": 0,
        "waitingTokens": 0, "replicas": []});
    more.as_object().into_iter().flatten().for_each(|(key, value)| chat[key] = value.clone());
    let all = json!({"version": VERSION, "epoch": epoch, "uptimeMs": uptime_ms, "deployments": [chat]});
    serde_json::from_value(all).unwrap()
}

fn book(pods: &[&str]) -> SignalBook {
    let mut book = SignalBook::default();
    expect(&mut book, pods, 0);
    book
}

fn expect(book: &mut SignalBook, pods: &[&str], now: TimeMs) {
    book.expect(&pods.iter().map(|pod| ((*pod).to_owned(), true)).collect(), now);
}

/// (from, to, arrivals) of a/chat.
fn taken(book: &mut SignalBook, now: TimeMs) -> Option<(TimeMs, TimeMs, u64)> {
    let report = book.take(now);
    let counted = report.deployments.get(&DeploymentId::new("a", "chat"))?.counted?;
    Some((counted.from_ms, counted.to_ms, counted.arrivals))
}

#[test]
fn intervals_follow_each_other_and_are_counted_once() {
    let mut book = book(&["g"]);
    let mut at = |now: TimeMs, arrivals| {
        book.receive("g", message("e", 100_000 + now, arrivals, json!({})), now);
        taken(&mut book, now + 10)
    };
    assert_eq!(at(1_000, 70), None, "what was counted before is of no known interval");
    assert_eq!(at(2_000, 75), Some((1_000, 2_000, 5)));
    assert_eq!(at(3_000, 75), Some((2_000, 3_000, 0)));
    assert_eq!(taken(&mut book, 3_500), Some((2_000, 3_000, 0)), "no new report: the same interval");
    for (now, arrivals) in [(4_000, 80), (5_000, 90)] {
        book.receive("g", message("e", 100_000 + now, arrivals, json!({})), now);
    }
    assert_eq!(taken(&mut book, 5_100), Some((3_000, 5_000, 15)), "two reports between two plans");
}

#[test]
fn silent_gateway_stops_the_interval_and_loses_nothing() {
    let mut book = book(&["g", "h"]);
    for pod in ["g", "h"] {
        book.receive(pod, message("e", 90_000, 0, json!({})), 1_000);
    }
    assert_eq!(taken(&mut book, 1_000), None);
    book.receive("g", message("e", 99_000, 4, json!({})), 9_000);
    book.failed("h", "connection refused".into());
    let report = book.take(9_000);
    assert_eq!(report.deployments[&DeploymentId::new("a", "chat")].counted, None);
    assert_eq!(report.problems["h"].to_string(), "its last report is 8 s old: connection refused");
    book.receive("h", message("e", 100_000, 3, json!({})), 10_000);
    assert_eq!(taken(&mut book, 10_000), Some((1_000, 9_000, 7)));
    // It is gone for good: the other one alone is enough.
    expect(&mut book, &["g"], 20_000);
    book.receive("g", message("e", 110_000, 5, json!({})), 20_000);
    assert_eq!(taken(&mut book, 20_000), Some((9_000, 20_000, 1)));
}

#[test]
fn restarted_gateway_counts_from_zero_and_nothing_is_negative() {
    let mut book = book(&["g"]);
    book.receive("g", message("e1", 90_000, 500, json!({})), 1_000);
    taken(&mut book, 1_000);
    book.receive("g", message("e2", 700, 3, json!({})), 2_000);
    assert_eq!(taken(&mut book, 2_000), Some((1_000, 2_000, 3)));
    // A new gateway that has been up since before the interval brings counts of no known time.
    expect(&mut book, &["g", "h"], 2_500);
    book.receive("h", message("x", 900_000, 400, json!({})), 3_000);
    book.receive("g", message("e2", 1_700, 4, json!({})), 3_000);
    assert_eq!(taken(&mut book, 3_000), Some((2_000, 3_000, 1)));
}

#[test]
fn no_gateway_is_no_signal_and_a_new_one_has_some_seconds() {
    let mut book = book(&[]);
    assert_eq!(book.take(1_000), GatewayReport::default());
    expect(&mut book, &["g"], 1_000);
    assert!(book.take(6_000).problems.is_empty());
    assert_eq!(book.take(6_001).problems["g"], Problem::Missing);
}

#[test]
fn message_that_cannot_be_believed_is_named_and_leaves_the_last_one() {
    let bad = |change: &dyn Fn(&mut Signals)| {
        let mut book = book(&["g"]);
        book.receive("g", message("e", 1_000, 10, json!({})), 1_000);
        book.take(1_000);
        let mut next = message("e", 2_000, 11, json!({}));
        change(&mut next);
        book.receive("g", next, 2_000);
        let report = book.take(2_000);
        assert_eq!(report.deployments[&DeploymentId::new("a", "chat")].counted, None);
        report.problems["g"].to_string()
    };
    assert!(bad(&|s| s.version = 2).contains("version 2"));
    assert!(bad(&|s| s.epoch.clear()).contains("epoch"));
    assert!(bad(&|s| s.uptime_ms = 1).contains("clock went back"));
}

/// `message` about a/chat and a/other, with a change of the former.
fn two(uptime_ms: u64, arrivals: u64, change: &dyn Fn(&mut DeploymentSignals)) -> Signals {
    let mut both = message("e", uptime_ms, arrivals, json!({}));
    both.deployments.push(DeploymentSignals { name: "other".into(), ..both.deployments[0].clone() });
    change(&mut both.deployments[0]);
    both
}

#[test]
fn nonsense_about_one_deployment_freezes_that_one_and_no_other() {
    let counted = |report: &GatewayReport, name: &str| {
        report.deployments[&DeploymentId::new("a", name)].counted.map(|counted| counted.arrivals)
    };
    let changes: [&dyn Fn(&mut DeploymentSignals); 4] =
        [&|d| d.mean_output_tokens = f64::NAN, &|d| d.queued = u64::MAX, &|d| d.arrivals = u64::MAX, &|d| {
            d.cached_tokens = u64::MAX
        }];
    for change in changes {
        let mut book = book(&["g"]);
        book.receive("g", two(1_000, 10, &|_| {}), 1_000);
        book.take(1_000);
        book.receive("g", two(2_000, 11, change), 2_000);
        let report = book.take(2_000);
        assert_eq!((counted(&report, "chat"), counted(&report, "other")), (None, Some(1)));
        assert!(report.problems.is_empty() && report.quiet(&DeploymentId::new("a", "chat"), "u").is_none());
        // Credible again: what arrived since the last credible message.
        book.receive("g", two(3_000, 14, &|_| {}), 3_000);
        let report = book.take(3_000);
        assert_eq!((counted(&report, "chat"), counted(&report, "other")), (Some(4), Some(3)));
    }
    // Nonsense from the beginning: counts of no known time are not of the interval.
    let mut book = book(&["g"]);
    for (now, change) in [(1_000, changes[1]), (2_000, changes[1]), (3_000, &|_| {})] {
        book.receive("g", two(now, 70, change), now);
        book.take(now);
    }
    assert_eq!(counted(&book.take(3_500), "chat"), Some(0));
}

#[test]
fn report_that_no_engine_can_make_is_left_out() {
    let replica = |uid: &str, used: u64| {
        json!({"pod": uid, "uid": uid, "inFlight": 2, "backlogTokens": 0,
            "engine": {"ageMs": 1, "unprefilledTokens": 0, "kvBlocksUsed": used, "kvBlocksTotal": 9}})
    };
    let mut book = book(&["g"]);
    let replicas = json!({"replicas": [replica("good", 9), replica("bad", u64::MAX)]});
    book.receive("g", message("e", 1_000, 3, replicas), 1_000);
    let load = &book.take(1_000).deployments[&DeploymentId::new("a", "chat")];
    assert!(load.replicas["good"].engine.is_some() && load.replicas["bad"].engine.is_none());
    assert_eq!(load.replicas["bad"].in_flight, 2);
}

#[test]
fn deployment_that_no_gateway_names_has_no_load_in_a_complete_interval() {
    let (quiet, mut book) = (DeploymentId::new("a", "quiet"), book(&["g"]));
    book.receive("g", message("e", 1_000, 3, json!({})), 1_000);
    assert_eq!(book.take(1_000).quiet(&quiet, "q"), None, "no interval is complete");
    book.receive("g", message("e", 2_000, 4, json!({})), 2_000);
    let report = book.take(2_000);
    let load = report.quiet(&quiet, "q").unwrap();
    assert_eq!(load.counted, Some(Counted { from_ms: 1_000, to_ms: 2_000, ..Counted::default() }));
    assert_eq!(report.quiet(&DeploymentId::new("a", "chat"), "u"), None, "it is named");
    // Its first requests are counted from zero.
    let mut woken = message("e", 3_000, 4, json!({}));
    woken.deployments.push(DeploymentSignals {
        name: "quiet".into(),
        arrivals: 2,
        uid: "q".into(),
        ..woken.deployments[0].clone()
    });
    book.receive("g", woken, 3_000);
    assert_eq!(book.take(3_000).deployments[&quiet].counted.unwrap().arrivals, 2);
}

#[test]
fn ten_thousand_deployments_take_one_pass() {
    let many = |uptime_ms: u64, arrivals: u64| {
        let mut message = message("e", uptime_ms, arrivals, json!({}));
        let named = |n: usize| DeploymentSignals { name: format!("chat-{n:05}"), ..message.deployments[0].clone() };
        message.deployments = (0..10_000).map(named).collect();
        message
    };
    let mut book = book(&["g"]);
    book.receive("g", many(1_000, 5), 1_000);
    book.take(1_000);
    let (next, began) = (many(2_000, 7), std::time::Instant::now());
    book.receive("g", next, 2_000);
    // A search from the beginning for each takes some ten seconds in this build.
    assert!(began.elapsed() < std::time::Duration::from_secs(1), "{:?}", began.elapsed());
    let report = book.take(2_000);
    assert!(report.deployments.values().all(|load| load.counted.is_some_and(|counted| counted.arrivals == 2)));
}

#[test]
fn deployment_that_a_gateway_met_again_is_counted_from_zero_and_stops_no_other() {
    let mut book = book(&["g"]);
    for (now, arrivals, want) in
        [(1_000, 70, None), (2_000, 9, Some((1_000, 2_000, 9))), (3_000, 11, Some((2_000, 3_000, 2)))]
    {
        book.receive("g", message("e", now, arrivals, json!({})), now);
        assert_eq!(taken(&mut book, now), want);
        assert!(book.take(now).problems.is_empty());
    }
}

#[test]
fn gateways_are_summed_and_the_freshest_engine_report_counts() {
    let replica = |in_flight: u32, age: u64, waiting: u64| {
        json!({"queued": 1, "held": 2, "waitingTokens": 30, "meanOutputTokens": waiting, "replicas": [{"pod": "p", "uid": "pu",
            "inFlight": in_flight, "backlogTokens": 0, "engine": {"ageMs": age, "unprefilledTokens": waiting, "kvBlocksUsed": 1, "kvBlocksTotal": 9}}]})
    };
    let mut book = book(&["g", "h"]);
    assert!(!book.receive("g", message("e", 900, 3, replica(4, 500, 100)), 900), "nobody decides by it");
    book.watch([DeploymentId::new("a", "chat")].into());
    assert!(book.receive("g", message("e", 1_000, 3, replica(4, 500, 100)), 1_000), "requests wait");
    book.receive("h", message("f", 1_000, 1, replica(5, 20, 200)), 1_000);
    let report = book.take(1_000);
    let load = &report.deployments[&DeploymentId::new("a", "chat")];
    assert_eq!((load.queued, load.held, load.waiting_tokens, load.mean_output_tokens), (2, 4, 60, 125.0));
    let replica = &load.replicas["pu"];
    let (at, engine) = replica.engine.as_ref().unwrap();
    assert_eq!((replica.in_flight, *at, engine.unprefilled_tokens), (9, 980, 200));
}

#[test]
fn sequences_and_placed_requests_are_known_where_every_gateway_reports_them() {
    let reported = |sequences: u64, placed: u64| json!({"sequences": sequences, "placed": placed});
    let of = |older: bool| {
        let mut book = book(&["g", "h"]);
        for (now, counts) in [(1_000, [10, 40, 9]), (2_000, [13, 52, 10])] {
            let [arrivals, sequences, placed] = counts;
            book.receive("g", message("e", now, arrivals, reported(sequences, placed)), now);
            let other = if older { json!({}) } else { reported(arrivals, arrivals) };
            book.receive("h", message("f", now, arrivals, other), now);
            book.take(now);
        }
        let counted = book.take(2_000).deployments[&DeploymentId::new("a", "chat")].counted.unwrap();
        (counted.arrivals, counted.sequences, counted.placed)
    };
    assert_eq!(of(false), (6, Some(15), Some(4)));
    assert_eq!(of(true), (6, None, None), "one of them is of a release that does not report them");
}

#[test]
fn key_fault_counts_when_every_gateway_reports_it() {
    let fault = |key: &str| json!({"tenant": "a", "secret": "s", "fault": {"kind": "notAHash", "key": key}});
    let with = |keys: serde_json::Value| {
        let mut signals = message("e", 1_000, 0, json!({}));
        signals.keys = serde_json::from_value(keys).unwrap();
        signals
    };
    let mut book = book(&["g", "h"]);
    assert_eq!(book.take(500).keys, None, "no gateway has reported");
    book.receive("g", with(json!([fault("x"), fault("y")])), 1_000);
    book.receive("h", with(json!([fault("y")])), 1_000);
    let keys = book.take(1_000).keys.unwrap();
    assert_eq!(
        keys.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["Secret s: the value of y is no lower-case hexadecimal SHA-256"]
    );
    assert_eq!(book.take(17_000).keys, None, "old reports are no evidence");
}

#[test]
fn draining_replica_is_asked_of_every_gateway_that_runs() {
    let with = |draining: serde_json::Value| {
        let mut signals = message("e", 1_000, 0, json!({}));
        signals.draining = serde_json::from_value(draining).unwrap();
        signals
    };
    let mut book = SignalBook::default();
    book.expect(&[("ends".to_owned(), false), ("serves".to_owned(), true)].into(), 0);
    let since = |book: &mut SignalBook, now, since| book.take(now).drains.of("u", since);
    let of = |book: &mut SignalBook, now| since(book, now, 0);
    assert!(book.receive("serves", with(json!([{"uid": "u", "inFlight": 0}])), 1_000), "worth a plan");
    assert_eq!(of(&mut book, 1_000), DrainState::Unread { gateway: "ends".into(), why: "not asked yet".into() });
    assert!(book.receive("ends", with(json!([{"uid": "u", "inFlight": 2}])), 1_000));
    assert!(!book.receive("ends", with(json!([{"uid": "u", "inFlight": 2}])), 1_500), "nothing new");
    assert_eq!(of(&mut book, 1_500), DrainState::Counted(2));
    assert_eq!(book.take(9_000).problems.keys().collect::<Vec<_>>(), ["serves"], "the other one need not report");
    let DrainState::Unread { gateway, why } = of(&mut book, 9_000) else { panic!("its count is old") };
    assert_eq!((gateway.as_str(), why.as_str()), ("ends", "its last report is 7 s old: not asked yet"));
    book.receive("ends", with(json!(null)), 9_000);
    let DrainState::Unread { why, .. } = of(&mut book, 9_000) else { panic!("it does not report them") };
    assert!(why.contains("release"), "{why}");
    book.expect(&[("serves".to_owned(), true)].into(), 9_000);
    assert_eq!(of(&mut book, 60_000), DrainState::Counted(0), "a zero stays true");
    assert_eq!(since(&mut book, 60_000, 1_000), DrainState::Counted(0), "it came as the drain began");
    let DrainState::Unread { gateway, .. } = since(&mut book, 60_000, 1_001) else { panic!("of an earlier drain") };
    assert_eq!(gateway, "serves");
}

#[test]
fn clock_that_is_set_begins_the_intervals_anew() {
    for by in [3_600_000i64, -3_600_000] {
        let mut book = book(&["g"]);
        let mut at = |now: TimeMs, arrivals: u64| {
            book.receive("g", message("e", 100_000 + arrivals, arrivals, json!({})), now);
            taken(&mut book, now)
        };
        at(5_000_000, 3);
        assert_eq!(at(5_001_000, 4), Some((5_000_000, 5_001_000, 1)));
        let now = moved(5_001_000, by);
        book.clock_set(by, now);
        let mut at = |after: TimeMs, arrivals: u64| {
            book.receive("g", message("e", 100_000 + arrivals, arrivals, json!({})), now + after);
            taken(&mut book, now + after)
        };
        assert_eq!(at(1_000, 6), None, "of no known interval");
        assert_eq!(at(2_000, 7), Some((now + 1_000, now + 2_000, 1)));
        assert!(book.take(now + 2_000).problems.is_empty());
    }
}
