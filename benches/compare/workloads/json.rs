//! A JSON document is parsed into a tree of values, read, and dropped, as every web service does it.
//! Parameters: 25,000 orders in one array, some 7 MB of text, parsed 6 times; the text is made beforehand.

use crate::block::Random;
use crate::probe::Probe;
use serde_json::Value;
use std::fmt::Write;

pub(crate) fn json(probe: &mut Probe) -> u64 {
    let (orders, times) = (probe.pick(25_000, 8_000, 20), probe.pick(6, 2, 1));
    let text = probe.untimed(|_| document(orders));
    let mut sum = 0_u64;
    for time in 0..times {
        let value: Value = serde_json::from_str(&text).expect("a document");
        if time + 1 == times {
            probe.peak();
        }
        sum = sum.wrapping_add(weigh(&value));
    }
    sum
}

/// Something that depends on every value.
fn weigh(value: &Value) -> u64 {
    match value {
        Value::Null => 1,
        Value::Bool(yes) => u64::from(*yes),
        Value::Number(number) => number.as_u64().unwrap_or(3),
        Value::String(text) => text.len() as u64,
        Value::Array(items) => items.iter().map(weigh).sum(),
        Value::Object(members) => {
            members.iter().map(|(key, value)| key.len() as u64 + weigh(value)).sum()
        }
    }
}

fn document(orders: usize) -> String {
    let mut random = Random::new(10);
    let mut text = String::from("[");
    for number in 0..orders {
        let (customer, city) = (random.below(5_000), random.below(300));
        let comma = if number == 0 { "" } else { "," };
        write!(
            text,
            r#"{comma}{{"number":{number},"paid":{},"note":null,"customer":{{"name":"customer {customer}","city":"city {city}"}},"lines":["#,
            number % 3 == 0
        )
        .expect("memory");
        for line in 0..random.between(1, 6) {
            let (article, count) = (random.next() >> 20, random.between(1, 50));
            let comma = if line == 0 { "" } else { "," };
            write!(
                text,
                r#"{comma}{{"article":"{article:011x}","count":{count},"price":{}.5}}"#,
                count * 7
            )
            .expect("memory");
        }
        text.push_str("]}");
    }
    text.push(']');
    text
}
