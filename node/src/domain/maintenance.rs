//! Alarms and the announced downgrade: the replicated state that etcd's Maintenance service changes. Pure; the same
//! answer on every member.
//!
//! Owns which alarm forbids which command, and what a command costs of a quota. It must not know how large the store
//! is: members see that differently, so it comes before the proposal, in the engine.

use balsa_proto::etcdserverpb::{
    self as pb, AlarmMember, AlarmRequest, AlarmResponse, AlarmType, TxnRequest, alarm_request::AlarmAction,
    request_op::Request,
};
use balsa_proto::log;

use super::command::Command;
use super::refusal::Refusal;

/// What etcd adds to a pair for what its store keeps beside it.
const PAIR_OVERHEAD: u64 = 256;

/// What etcd counts for a lease.
const LEASE_COST: u64 = 64;

/// Whether the alarms let a command through. `Corrupt` stops all that changes keys or leases, `NoSpace` all that may
/// need space; deletes, compactions and the alarms' own commands go on.
///
/// # Errors
/// `Corrupt`, `NoSpace`.
pub fn check(state: &log::Maintenance, command: &Command) -> Result<(), Refusal> {
    if is_raised(state, AlarmType::Corrupt) && changes_data(command) {
        return Err(Refusal::Corrupt);
    }
    if is_raised(state, AlarmType::Nospace) && cost(command) > 0 {
        return Err(Refusal::NoSpace);
    }
    Ok(())
}

/// Whether any member has raised an alarm of this type.
pub fn is_raised(state: &log::Maintenance, alarm: AlarmType) -> bool {
    state.alarms.iter().any(|member| member.alarm == alarm as i32)
}

/// What a command takes of a quota, in bytes, counted as etcd counts. 0: it needs no space.
pub fn cost(command: &Command) -> u64 {
    match command {
        Command::Put(put) => put_cost(put),
        Command::Txn(txn) => txn_cost(txn),
        Command::LeaseGrant(_) => LEASE_COST,
        _ => 0,
    }
}

fn put_cost(put: &pb::PutRequest) -> u64 {
    PAIR_OVERHEAD + put.key.len() as u64 + put.value.len() as u64
}

/// The dearer branch counts, whichever will be taken. The depth is bounded by the checks of the service.
fn txn_cost(txn: &TxnRequest) -> u64 {
    let branch = |operations: &[pb::RequestOp]| -> u64 {
        let costs = operations.iter().map(|operation| match &operation.request {
            Some(Request::RequestPut(put)) => put_cost(put),
            Some(Request::RequestTxn(nested)) => txn_cost(nested),
            _ => 0,
        });
        costs.sum()
    };
    branch(&txn.success).max(branch(&txn.failure))
}

fn changes_data(command: &Command) -> bool {
    matches!(
        command,
        Command::Put(_)
            | Command::DeleteRange(_)
            | Command::Txn(_)
            | Command::Compact(_)
            | Command::LeaseGrant(_)
            | Command::LeaseRevoke(_)
            | Command::LeaseExpire(_)
    )
}

/// Executes an alarm command. The answer names the alarms that were asked for, raised or cleared.
pub fn alarm(state: &mut log::Maintenance, request: &AlarmRequest) -> AlarmResponse {
    let wanted = AlarmMember { member_id: request.member_id, alarm: request.alarm };
    let alarms = match request.action() {
        AlarmAction::Get => list(state, request.alarm),
        AlarmAction::Activate => activate(state, wanted),
        AlarmAction::Deactivate => deactivate(state, &wanted),
    };
    AlarmResponse { header: None, alarms }
}

/// The raised alarms of a type, `None` for all. A type that this version does not know is not raised.
pub fn list(state: &log::Maintenance, alarm: i32) -> Vec<AlarmMember> {
    let wanted = |member: &&AlarmMember| alarm == AlarmType::None as i32 || member.alarm == alarm;
    state.alarms.iter().filter(wanted).copied().collect()
}

/// A type that this version does not know raises nothing, like `None`.
fn activate(state: &mut log::Maintenance, wanted: AlarmMember) -> Vec<AlarmMember> {
    if !matches!(wanted.alarm(), AlarmType::Nospace | AlarmType::Corrupt) {
        return Vec::new();
    }
    if !state.alarms.contains(&wanted) {
        state.alarms.push(wanted);
        state.alarms.sort_by_key(|member| (member.alarm, member.member_id));
    }
    vec![wanted]
}

fn deactivate(state: &mut log::Maintenance, wanted: &AlarmMember) -> Vec<AlarmMember> {
    let before = state.alarms.len();
    state.alarms.retain(|member| member != wanted);
    if state.alarms.len() < before { vec![*wanted] } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(action: AlarmAction, member_id: u64, alarm: AlarmType) -> AlarmRequest {
        AlarmRequest { action: action.into(), member_id, alarm: alarm.into() }
    }

    fn raised(alarm: AlarmType) -> log::Maintenance {
        let mut state = log::Maintenance::default();
        super::alarm(&mut state, &request(AlarmAction::Activate, 7, alarm));
        state
    }

    fn put_txn() -> Command {
        let put = pb::PutRequest { key: "k".into(), value: "value".into(), ..Default::default() };
        let nested = TxnRequest {
            failure: vec![pb::RequestOp { request: Some(Request::RequestPut(put)) }],
            ..Default::default()
        };
        let operation = pb::RequestOp { request: Some(Request::RequestTxn(nested)) };
        Command::Txn(TxnRequest { success: vec![operation], ..Default::default() })
    }

    #[test]
    fn an_alarm_is_raised_once_and_cleared_by_its_exact_name() {
        let mut state = raised(AlarmType::Nospace);
        let again = alarm(&mut state, &request(AlarmAction::Activate, 7, AlarmType::Nospace));
        assert_eq!((again.alarms.len(), state.alarms.len()), (1, 1));
        alarm(&mut state, &request(AlarmAction::Activate, 3, AlarmType::Corrupt));
        assert_eq!(list(&state, AlarmType::None.into()).len(), 2);
        assert_eq!(list(&state, 3), [], "of a type that nobody knows");
        assert_eq!(
            list(&state, AlarmType::Corrupt.into()).iter().map(|member| member.member_id).collect::<Vec<_>>(),
            [3]
        );
        for (member, kind) in [(0, AlarmType::Nospace), (7, AlarmType::None), (7, AlarmType::Corrupt)] {
            assert!(alarm(&mut state, &request(AlarmAction::Deactivate, member, kind)).alarms.is_empty());
        }
        assert_eq!(alarm(&mut state, &request(AlarmAction::Deactivate, 7, AlarmType::Nospace)).alarms.len(), 1);
        assert_eq!(list(&state, AlarmType::None.into()).len(), 1);
    }

    #[test]
    fn an_alarm_of_no_type_is_none() {
        let mut state = raised(AlarmType::None);
        alarm(&mut state, &AlarmRequest { action: 1, member_id: 7, alarm: 9 });
        assert_eq!(state, log::Maintenance::default());
    }

    #[test]
    fn without_space_deletes_and_compactions_go_on() {
        let state = raised(AlarmType::Nospace);
        assert_eq!(check(&state, &Command::Put(pb::PutRequest::default())), Err(Refusal::NoSpace));
        assert_eq!(check(&state, &put_txn()), Err(Refusal::NoSpace), "a put in either branch counts");
        assert_eq!(check(&state, &Command::LeaseGrant(pb::LeaseGrantRequest::default())), Err(Refusal::NoSpace));
        for allowed in [
            Command::DeleteRange(pb::DeleteRangeRequest::default()),
            Command::Compact(pb::CompactionRequest::default()),
            Command::Txn(TxnRequest::default()),
            Command::LeaseRevoke(pb::LeaseRevokeRequest::default()),
            Command::Alarm(AlarmRequest::default()),
        ] {
            assert_eq!(check(&state, &allowed), Ok(()));
        }
    }

    #[test]
    fn with_corrupt_data_nothing_changes_any_more() {
        let state = raised(AlarmType::Corrupt);
        for refused in [
            put_txn(),
            Command::DeleteRange(pb::DeleteRangeRequest::default()),
            Command::Compact(pb::CompactionRequest::default()),
        ] {
            assert_eq!(check(&state, &refused), Err(Refusal::Corrupt));
        }
        assert_eq!(check(&state, &Command::Alarm(AlarmRequest::default())), Ok(()));
    }

    #[test]
    fn a_transaction_costs_its_dearer_branch() {
        assert_eq!(cost(&put_txn()), PAIR_OVERHEAD + 6);
        assert_eq!(cost(&Command::Txn(TxnRequest::default())), 0);
    }
}
