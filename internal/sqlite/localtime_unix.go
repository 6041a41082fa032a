//go:build !windows

package sqlite

import "modernc.org/libc"

func localtime(tls *libc.TLS, t uintptr) uintptr { return libc.Xlocaltime(tls, t) }
