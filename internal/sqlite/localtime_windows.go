package sqlite

import "modernc.org/libc"

func localtime(tls *libc.TLS, t uintptr) uintptr { return libc.X_localtime64(tls, t) }
