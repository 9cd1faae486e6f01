//! A member that tells of another membership than there is: what the real passes make of it, whatever is asked for meanwhile.

use serde_json::{Value, json};

use super::runs::{Operator, block_on, settled, shared};
use super::stage::{Shared, Stage, lock};
use crate::names::REPLACE_MEMBER;
use crate::observed::MemberList;
use crate::plan::LASTING_WAIT_SECONDS;
use crate::plan::simulation::TICK_SECONDS;

/// Passes of each case.
const PASSES: i64 = 60;

/// What may be told of a cluster of three by the node of pod 0, which is member 1.
fn lies(truth: &MemberList) -> Vec<(&'static str, MemberList)> {
    let alone = |index: u64, removed: &[u64]| {
        let mut list = truth.clone();
        (list.leader, list.term, list.membership_index) = (1, 99, index);
        list.members.retain(|id, _| *id == 1);
        list.members.values_mut().for_each(|member| member.progress = None);
        list.removed = removed.iter().copied().collect();
        list
    };
    let now = truth.membership_index;
    vec![
        ("its volume was put back to the founding", alone(1, &[])),
        ("the others are removed", alone(now, &[2, 3])),
        ("the others are removed, a moment ago", alone(now + 1, &[2, 3])),
    ]
}

/// A settled cluster of three, in which pod 0 tells this.
async fn lying(lie: usize, edit: &Value) -> (&'static str, Stage) {
    let mut stage = settled(3, &json!({"storage": {"retention": {"whenScaled": "Delete"}}})).await;
    let (name, list) = lies(&stage.world.list().expect("a list")).swap_remove(lie);
    stage.lies.insert(0, list);
    stage.edit(edit);
    (name, stage)
}

async fn pass_on(operator: &Operator, stage: &Shared) {
    for _ in 0..PASSES {
        operator.pass().await.expect("a pass");
        lock(stage).judge().unwrap_or_else(|wrong| panic!("{wrong}"));
        lock(stage).world.tick();
    }
}

/// Writes to anything but the status.
fn touched(stage: &Shared) -> Vec<String> {
    lock(stage).writes.iter().filter(|write| !write.ends_with(" status")).cloned().collect()
}

/// Of three one lies and one is silent: no majority says anything, so nothing is done, and a person is told.
#[test]
fn m2_without_a_majority_behind_one_list_nothing_is_touched() {
    for lie in 0..3 {
        for edit in [json!({}), json!({"replicas": 5}), json!({"replicas": 1})] {
            block_on(async {
                let (name, mut stage) = lying(lie, &edit).await;
                stage.world.hang(2);
                let stage = shared(stage);
                let operator = Operator::new(&stage);
                pass_on(&operator, &stage).await;
                assert_eq!(touched(&stage), Vec::<String>::new(), "{name}, {edit}");
                let told = |kind: &str| lock(&stage).condition(kind);
                assert_eq!(told("Consistent"), ("False".to_owned(), "MembersDisagree".to_owned()), "{name}, {edit}");
                assert_eq!(told("Available").0, "True", "linearizable reads were answered");
                let warned = |event: &&[String; 4]| event[1] == "MembersDisagree";
                assert_eq!(lock(&stage).events.iter().filter(warned).count(), 1, "{name}, {edit}");
                lock(&stage).lies.clear();
                lock(&stage).world.hung.clear();
                operator.settle().await.unwrap_or_else(|wrong| panic!("{name}, {edit}: {wrong}"));
            });
        }
    }
}

/// Two of three say the same: the plan goes by them, whatever the third tells, and that one is told of until it is replaced.
#[test]
fn m2_a_member_that_lies_is_outvoted_and_can_be_replaced() {
    for lie in 0..3 {
        for want in [1, 3, 5] {
            block_on(async {
                let (name, stage) = lying(lie, &json!({"replicas": 3})).await;
                let stage = shared(stage);
                let operator = Operator::new(&stage);
                // The one that lies follows: as it would not know of being asked to hand over.
                lock(&stage).world.move_lead(1);
                pass_on(&operator, &stage).await;
                assert_eq!(touched(&stage), Vec::<String>::new(), "{name}");
                const { assert!(PASSES * TICK_SECONDS > LASTING_WAIT_SECONDS) };
                assert_eq!(lock(&stage).condition("Consistent").1, "MembersDisagree", "{name}");

                lock(&stage).annotate(REPLACE_MEMBER, "1");
                while lock(&stage).world.raft.members.contains_key(&1) {
                    operator.pass().await.expect("a pass");
                    lock(&stage).world.tick();
                }
                // With its disk its other life is over.
                lock(&stage).lies.clear();
                lock(&stage).edit(&json!({"replicas": want}));
                operator.settle().await.unwrap_or_else(|wrong| panic!("{name}, {want}: {wrong}"));
                assert_eq!(lock(&stage).condition("Consistent").0, "True");
            });
        }
    }
}
