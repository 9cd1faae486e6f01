//! The replicated membership: which changes are legal, and what they make of it. Pure; the same answer on every member.
