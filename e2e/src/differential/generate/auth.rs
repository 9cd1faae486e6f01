//! Users, roles and permissions, and who sends the other requests: those with a right to them, those without, and those
//! whose token is none.

use balsa_proto::authpb;
use balsa_proto::etcdserverpb as pb;

use super::Draw;
use crate::differential::call::Call;
use crate::differential::step::{Bearer, Step};

const USERS: [&str; 4] = ["root", "ann", "bob", "nopass"];
const ROLES: [&str; 4] = ["root", "r", "s", "t"];

/// The user of this name, as tokens are kept by it.
pub fn user_named(name: &str) -> &'static str {
    USERS.into_iter().find(|user| *user == name).unwrap_or("other")
}

impl Draw {
    /// What makes the beginning of a sequence with users: else most of it would pass before auth is on.
    pub(super) fn users(&mut self) -> Vec<Step> {
        let mut steps = vec![
            add("root"),
            add("ann"),
            add("bob"),
            Call::RoleAdd(pb::AuthRoleAddRequest { name: "root".into() }),
            Call::RoleAdd(pb::AuthRoleAddRequest { name: "r".into() }),
            Call::RoleAdd(pb::AuthRoleAddRequest { name: "s".into() }),
            grant("root", "root"),
            grant("ann", "r"),
            grant("bob", "s"),
        ];
        for role in ["r", "r", "s"] {
            let perm = Some(self.permission());
            steps.push(Call::RoleGrantPermission(pb::AuthRoleGrantPermissionRequest { name: role.into(), perm }));
        }
        steps.push(Call::AuthEnable(pb::AuthEnableRequest {}));
        steps.extend(["root", "ann", "bob"].map(login));
        steps.into_iter().map(Step::Call).collect()
    }

    /// A step with the token of someone.
    pub(super) fn with_bearer(&mut self, step: Step) -> Step {
        let bearer = match self.rng.u32(0..100) {
            0..40 => Bearer::User("root"),
            40..65 => Bearer::User("ann"),
            65..85 => Bearer::User("bob"),
            85..88 => Bearer::User("nopass"),
            88..92 => Bearer::Text(self.pick(&["", "x", "x.1", "abc.1", "a.b.c"])),
            _ => return step,
        };
        Step::As { bearer, step: Box::new(step) }
    }

    pub(super) fn auth(&mut self) -> Step {
        let call = match self.rng.u32(0..100) {
            0..6 => Call::AuthStatus(pb::AuthStatusRequest {}),
            6..12 => Call::AuthEnable(pb::AuthEnableRequest {}),
            12..15 => Call::AuthDisable(pb::AuthDisableRequest {}),
            15..38 => self.login(),
            38..66 => self.about_users(),
            _ => self.about_roles(),
        };
        let step = Step::Call(call);
        // Most of it is only for root.
        if self.chance(60) {
            return Step::As { bearer: Bearer::User("root"), step: Box::new(step) };
        }
        step
    }

    fn login(&mut self) -> Call {
        let mut request = pb::AuthenticateRequest { name: self.user(), ..Default::default() };
        request.password = if self.chance(80) { password(&request.name) } else { self.password() };
        Call::Authenticate(request)
    }

    fn about_users(&mut self) -> Call {
        let name = self.user();
        match self.rng.u32(0..100) {
            0..25 => {
                let options = self.chance(20).then(|| authpb::UserAddOptions { no_password: self.chance(60) });
                let password = if self.chance(75) { password(&name) } else { self.password() };
                let hashed_password = self.hashed_password();
                Call::UserAdd(pb::AuthUserAddRequest { name, password, options, hashed_password })
            }
            25..40 => Call::UserGet(pb::AuthUserGetRequest { name }),
            40..47 => Call::UserList(pb::AuthUserListRequest {}),
            47..55 => Call::UserDelete(pb::AuthUserDeleteRequest { name }),
            55..65 => {
                let password = if self.chance(75) { password(&name) } else { self.password() };
                let hashed_password = self.hashed_password();
                Call::UserChangePassword(pb::AuthUserChangePasswordRequest { name, password, hashed_password })
            }
            65..88 => Call::UserGrantRole(pb::AuthUserGrantRoleRequest { user: name, role: self.role() }),
            _ => Call::UserRevokeRole(pb::AuthUserRevokeRoleRequest { name, role: self.role() }),
        }
    }

    fn about_roles(&mut self) -> Call {
        let name = self.role();
        match self.rng.u32(0..100) {
            0..20 => Call::RoleAdd(pb::AuthRoleAddRequest { name }),
            20..35 => Call::RoleGet(pb::AuthRoleGetRequest { role: name }),
            35..42 => Call::RoleList(pb::AuthRoleListRequest {}),
            42..50 => Call::RoleDelete(pb::AuthRoleDeleteRequest { role: name }),
            50..85 => {
                let perm = if self.chance(3) { None } else { Some(self.permission()) };
                Call::RoleGrantPermission(pb::AuthRoleGrantPermissionRequest { name, perm })
            }
            _ => {
                let key = self.key();
                let range_end = if self.chance(60) { Default::default() } else { self.range_end(&key) };
                Call::RoleRevokePermission(pb::AuthRoleRevokePermissionRequest { role: name, key, range_end })
            }
        }
    }

    fn permission(&mut self) -> authpb::Permission {
        let key = self.key();
        let range_end = if self.chance(40) { Default::default() } else { self.range_end(&key) };
        let perm_type = if self.chance(97) { self.pick(&[0, 1, 2, 2]) } else { self.pick(&[3, -1]) };
        authpb::Permission { perm_type, key, range_end }
    }

    fn user(&mut self) -> String {
        match self.rng.u32(0..100) {
            0..94 => self.pick(&USERS).into(),
            _ => self.pick(&["", "nobody", "\u{fc}"]).into(),
        }
    }

    fn role(&mut self) -> String {
        match self.rng.u32(0..100) {
            0..10 => "root".into(),
            10..94 => self.pick(&ROLES[1..]).into(),
            _ => self.pick(&["", "none"]).into(),
        }
    }

    fn password(&mut self) -> String {
        self.pick(&["", "wrong", "pw-ann"]).into()
    }

    /// Mostly none: then the password counts.
    fn hashed_password(&mut self) -> String {
        match self.rng.u32(0..100) {
            0..95 => String::new(),
            _ => self.pick(&["not base64!", "bm9uZQ=="]).into(),
        }
    }
}

fn password(user: &str) -> String {
    if user == "nopass" { String::new() } else { format!("pw-{user}") }
}

fn add(user: &str) -> Call {
    Call::UserAdd(pb::AuthUserAddRequest { name: user.into(), password: password(user), ..Default::default() })
}

fn grant(user: &str, role: &str) -> Call {
    Call::UserGrantRole(pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() })
}

fn login(user: &str) -> Call {
    Call::Authenticate(pb::AuthenticateRequest { name: user.into(), password: password(user) })
}
