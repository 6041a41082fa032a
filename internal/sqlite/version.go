package sqlite

import (
	"hash/fnv"
	"io"
	"runtime"
	"strings"
	"sync"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"
)

// Version is SQLite's version, such as "3.54.1".
func Version() string { return identity().version }

// SourceID names the exact source SQLite was built from.
func SourceID() string { return identity().sourceID }

// Fingerprint is equal on two nodes only if the same statements can be
// expected to have the same effects on both: it covers SQLite's source, its
// compile options and how the processor's floating point is used.
func Fingerprint() uint64 { return identity().fingerprint }

type identityInfo struct {
	version, sourceID string
	fingerprint       uint64
}

var identity = sync.OnceValue(func() identityInfo {
	tls := libc.NewTLS()
	defer tls.Close()
	id := identityInfo{
		version:  gostring(lib.Xsqlite3_libversion(tls)),
		sourceID: gostring(lib.Xsqlite3_sourceid(tls)),
	}
	h := fnv.New64a()
	line := func(s string) { _, _ = io.WriteString(h, s+"\n") } // a hash does not fail
	line(id.sourceID)
	for i := int32(0); ; i++ {
		p := lib.Xsqlite3_compileoption_get(tls, i)
		if p == 0 {
			break
		}
		// Which C compiler the source went through before it became Go says
		// nothing about what it does.
		if o := gostring(p); !strings.HasPrefix(o, "COMPILER=") {
			line(o)
		}
	}
	line(runtime.GOARCH)
	if fusesMultiplyAdd(1+0x1p-30, 1-0x1p-30, -1) {
		line("fma")
	}
	id.fingerprint = h.Sum64()
	return id
})

// fusesMultiplyAdd reports whether the compiler turns x*y+z into one rounding,
// as it does on some processors and by GOAMD64=v3 on others: the last bits of
// log() and pow() differ then.
//
//go:noinline
func fusesMultiplyAdd(x, y, z float64) bool { return x*y+z != float64(x*y)+z }
