//! Expression trees, as in compilers and query planners: grown at random, rewritten by rules, evaluated, dropped.
//! Parameters: 40 trees of 50,000 operators, of which the last 4 live; each is rewritten into a new tree twice.

use crate::block::Random;
use crate::probe::Probe;
use std::collections::VecDeque;

enum Expression {
    Number(u64),
    Name(String),
    Negate(Box<Expression>),
    Operate(u8, Box<Expression>, Box<Expression>),
    Call(String, Vec<Expression>),
}

use Expression::{Call, Name, Negate, Number, Operate};

pub(crate) fn expression(probe: &mut Probe) -> u64 {
    const LIVE: usize = 4;
    let (trees, operators) = (probe.pick(40, 10, 3), probe.pick(50_000, 20_000, 200));
    let mut random = Random::new(11);
    let mut live = VecDeque::new();
    let mut sum = 0_u64;
    for index in 0..trees {
        let mut tree = grow(&mut random, operators);
        for _ in 0..2 {
            tree = rewrite(&tree);
        }
        sum = sum.wrapping_add(evaluate(&tree));
        live.push_back(tree);
        if live.len() > LIVE {
            live.pop_front();
        }
        if index + 1 == trees {
            probe.peak();
        }
    }
    sum
}

/// A tree of so many operators; its halves differ in size, and its depth stays near the logarithm.
fn grow(random: &mut Random, operators: usize) -> Expression {
    if operators == 0 {
        return match random.below(3) {
            0 => Name(format!("column_{}", random.below(1_000))),
            _ => Number(random.next() >> 40),
        };
    }
    let rest = operators - 1;
    match random.below(8) {
        0 => Negate(Box::new(grow(random, rest))),
        1 => {
            let parts = random.between(2, 4);
            let arguments = (0..parts).map(|part| grow(random, (rest + part) / parts)).collect();
            Call(format!("function_{}", random.below(100)), arguments)
        }
        operation => {
            let left = rest / 4 + random.below(rest / 2 + 1);
            let left_tree = Box::new(grow(random, left));
            Operate(operation as u8, left_tree, Box::new(grow(random, rest - left)))
        }
    }
}

/// A new tree of the same value: operands of commutative operators change places, double negation goes.
fn rewrite(tree: &Expression) -> Expression {
    match tree {
        Number(number) => Number(*number),
        Name(name) => Name(name.clone()),
        Negate(inner) => match &**inner {
            Negate(twice) => rewrite(twice),
            other => Negate(Box::new(rewrite(other))),
        },
        Operate(operation @ 2..=4, left, right) => {
            Operate(*operation, Box::new(rewrite(right)), Box::new(rewrite(left)))
        }
        Operate(operation, left, right) => {
            Operate(*operation, Box::new(rewrite(left)), Box::new(rewrite(right)))
        }
        Call(name, arguments) => Call(name.clone(), arguments.iter().map(rewrite).collect()),
    }
}

fn evaluate(tree: &Expression) -> u64 {
    match tree {
        Number(number) => *number,
        Name(name) => name.len() as u64,
        Negate(inner) => evaluate(inner).wrapping_neg(),
        Operate(operation, left, right) => {
            let (left, right) = (evaluate(left), evaluate(right));
            match operation {
                2 => left.wrapping_add(right),
                3 => left.wrapping_mul(right),
                4 => left ^ right,
                5 => left.wrapping_sub(right),
                6 => left.rotate_left(7) ^ right,
                _ => left.wrapping_sub(right.rotate_left(3)),
            }
        }
        Call(name, arguments) => {
            let start = name.len() as u64;
            arguments.iter().fold(start, |sum, part| sum.rotate_left(1) ^ evaluate(part))
        }
    }
}
