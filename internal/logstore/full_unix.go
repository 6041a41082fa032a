//go:build !windows

package logstore

import "syscall"

// fullErrors say that there is no room.
var fullErrors = []error{syscall.ENOSPC, syscall.EDQUOT}
