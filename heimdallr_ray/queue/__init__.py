"""The lease table: claim, renew, finish, with a fence that makes a late worker harmless."""
