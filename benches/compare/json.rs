//! The results as JSON: every run, and what follows from them.
//! Owns: nothing. Called by: `main`.

use crate::header::Header;
use crate::results::{Measure, Results, Row};
use serde_json::{Map, Value, json};

/// Everything, in one object.
pub(crate) fn write(header: &Header, results: &Results) -> Value {
    let header: Map<String, Value> =
        header.0.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let mut means = Map::new();
    if results.ours().is_some() {
        means.insert("best".into(), ratios(|measure| results.mean_ratio(None, measure)));
        for peer in results.peers() {
            let name = results.allocators.get(peer).copied().unwrap_or_default();
            means.insert(name.into(), ratios(|measure| results.mean_ratio(Some(peer), measure)));
        }
    }
    json!({
        "header": header,
        "allocators": results.allocators,
        "workloads": results.rows.iter().map(|row| workload(results, row)).collect::<Vec<_>>(),
        "geometric_means": means,
    })
}

fn workload(results: &Results, row: &Row) -> Value {
    let mut allocators = Map::new();
    for (place, (name, cell)) in results.allocators.iter().zip(&row.cells).enumerate() {
        let value = json!({
            "median": ratios(|measure| cell.median(measure)),
            "overhead": row.peak_overhead(place),
            "failure": cell.failure,
            "runs": cell.runs,
        });
        allocators.insert((*name).to_owned(), value);
    }
    let best = |measure| {
        Some(json!({
            "peer": results.best_peer(row, measure).and_then(|peer| results.allocators.get(peer)),
            "ratio": results.ratio_to_best(row, measure),
        }))
    };
    json!({
        "name": row.workload,
        "live_peak": row.counted.over_rounds(|run| run["live_peak"].as_f64()),
        "live_point": row.counted.over_rounds(|run| run["live_point"].as_f64()),
        "behind": results.is_behind(row),
        "best": by_measure(best),
        "allocators": allocators,
    })
}

fn ratios(number: impl Fn(Measure) -> Option<f64>) -> Value {
    by_measure(|measure| number(measure).map(|number| json!(number)))
}

fn by_measure(value: impl Fn(Measure) -> Option<Value>) -> Value {
    Measure::ALL.iter().map(|measure| (measure.key(), value(*measure))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::results;

    #[test]
    fn runs_ratios_and_means_are_there() {
        let header = Header(vec![("kernel".into(), "Linux 6.18".into())]);
        let value = write(&header, &results());
        assert_eq!(value["header"]["kernel"], "Linux 6.18");
        let json = &value["workloads"][0];
        assert_eq!((&json["name"], &json["behind"]), (&json!("json"), &json!(false)));
        assert_eq!(json["best"]["time_ns"], json!({"peer": "glibc", "ratio": 0.5}));
        assert_eq!(json["allocators"]["nearheap"]["runs"].as_array().unwrap().len(), 3);
        assert_eq!(value["workloads"][1]["allocators"]["jemalloc"]["failure"], "signal 11");
        assert!(value["geometric_means"]["best"]["time_ns"].is_number());
    }
}
