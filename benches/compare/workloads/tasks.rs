//! A tokio program: tasks that spawn tasks, wait for each other, and pass on what they allocated, on workers that steal.
//! Parameters: 2 workers; 150,000 requests, 256 at a time, of 4 parts each; a part is a task of its own that makes twelve
//! blocks of 32 to 512 bytes and passes eight on.

use crate::block::{Block, Random, free_all};
use crate::probe::Probe;
use std::sync::Arc;
use tokio::runtime::Builder;
use tokio::sync::{Semaphore, mpsc};
use tokio::task;

const PARTS: u64 = 4;
const AT_ONCE: usize = 256;

pub(crate) fn tokio(probe: &mut Probe) -> u64 {
    let requests = probe.pick(150_000, 15_000, 40) as u64;
    let runtime = Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    let sum = runtime.block_on(async {
        let (sender, mut receiver) = mpsc::channel::<Vec<Block>>(AT_ONCE);
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let listener = task::spawn(async move {
            for number in 0..requests {
                let place = Arc::clone(&places).acquire_owned().await.expect("it is open");
                let sender = sender.clone();
                task::spawn(async move {
                    sender.send(request(number).await).await.expect("a receiver");
                    drop(place);
                });
            }
        });
        let (mut sum, mut answers) = (0_u64, 0);
        while let Some(answer) = receiver.recv().await {
            sum = sum.wrapping_add(free_all(answer));
            answers += 1;
            if answers == requests / 2 {
                probe.peak();
            }
        }
        listener.await.expect("no panic");
        sum
    });
    drop(runtime);
    sum
}

async fn request(number: u64) -> Vec<Block> {
    let parts: Vec<_> = (0..PARTS).map(|part| task::spawn(make(number * PARTS + part))).collect();
    let mut answer = Vec::new();
    for part in parts {
        answer.extend(part.await.expect("no panic"));
    }
    answer
}

/// Half of the blocks before the task lets others run, and half after: often on another worker.
async fn make(number: u64) -> Vec<Block> {
    let mut random = Random::new(number);
    let mut blocks: Vec<Block> =
        (0..8).map(|_| Block::new(random.between(32, 512), number)).collect();
    task::yield_now().await;
    random.shuffle(&mut blocks);
    blocks.truncate(4);
    blocks.extend((0..4).map(|_| Block::new(random.between(32, 512), number)));
    blocks
}
