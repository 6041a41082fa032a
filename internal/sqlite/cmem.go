package sqlite

import (
	"unsafe"

	"modernc.org/libc"
	"modernc.org/libc/sys/types"
	lib "modernc.org/sqlite/lib"
)

// The engine is C translated to Go: its memory comes from mmap, lies outside
// the Go heap, is never moved and never seen by the collector. These helpers
// are the only places where an address becomes a pointer.

// at views the C memory at p as a T. The double indirection tells the compiler
// nothing about where p came from, which is the truth: it is no Go object.
func at[T any](p uintptr) *T { return *(**T)(unsafe.Pointer(&p)) }

// view is the C memory [p, p+n) as a slice; nil when there is nothing there.
func view(p uintptr, n int) []byte {
	if p == 0 || n <= 0 {
		return nil
	}
	return unsafe.Slice(at[byte](p), n)
}

// cbytes is the NUL-terminated string at p without its terminator.
func cbytes(p uintptr) []byte {
	if p == 0 {
		return nil
	}
	n := 0
	for *at[byte](p + uintptr(n)) != 0 {
		n++
	}
	return view(p, n)
}

func gostring(p uintptr) string { return string(cbytes(p)) }

// fp is the address by which C calls f, which must be a top-level function: a
// closure's state would be invisible to the collector and could be freed.
func fp[T any](f T) uintptr { return *(*uintptr)(unsafe.Pointer(&struct{ f T }{f})) }

// cstr is a NUL-terminated copy of s in C memory, to be freed by the caller.
func cstr(tls *libc.TLS, s string) (uintptr, error) {
	p := libc.Xmalloc(tls, types.Size_t(len(s)+1))
	if p == 0 {
		return 0, &Error{Code: NoMem, Extended: NoMem, Msg: "out of memory", Offset: -1}
	}
	b := view(p, len(s)+1)
	copy(b, s)
	b[len(s)] = 0
	return p, nil
}

func calloc(tls *libc.TLS, n uintptr) (uintptr, error) {
	p := libc.Xcalloc(tls, 1, types.Size_t(n))
	if p == 0 {
		return 0, &Error{Code: NoMem, Extended: NoMem, Msg: "out of memory", Offset: -1}
	}
	return p, nil
}

func cfree(tls *libc.TLS, p uintptr) {
	if p != 0 {
		libc.Xfree(tls, p)
	}
}

// Constant strings that C reads for as long as the process lives.
var (
	zEmpty = mustCString("")
	zMain  = mustCString("main")
	fpFree = fp(lib.Xsqlite3_free)
)

func mustCString(s string) uintptr {
	tls := libc.NewTLS()
	defer tls.Close()
	p, err := cstr(tls, s)
	if err != nil {
		panic(err) // a few bytes at program start: there is no process without them
	}
	return p
}
