package sqlite

import (
	"fmt"
	"math"
	"math/bits"
	"sync"
	"sync/atomic"
	"unsafe"

	"modernc.org/libc"
	lib "modernc.org/sqlite/lib"
)

// A pinned connection has a VFS registration of its own, whose clock stands
// still at the time it was told. The time is part of the registration, and a
// process may run many nodes with many databases: nothing is shared.
type pinned struct {
	name  string
	vfs   uintptr // *pinnedVFS
	rng   uintptr // *chance
	tls   *libc.TLS
	inUse bool // registered with SQLite
}

// pinnedVFS lives in C memory. SQLite sees only the first field.
type pinnedVFS struct {
	lib.Tsqlite3_vfs
	now  int64 // milliseconds since the Julian epoch
	base uintptr
}

const julianUnixMilli = 210866760000000 // 1970-01-01 in milliseconds since the Julian epoch

var (
	pinnedCount atomic.Uint64

	fpPinnedOpen  = fp(pinnedOpenC)
	fpPinnedNow64 = fp(pinnedNow64C)
	fpPinnedNow   = fp(pinnedNowC)
	fpRandom      = fp(randomC)
	fpRandomBlob  = fp(randomBlobC)
)

func newPinned(tls *libc.TLS, baseName string) (_ *pinned, err error) {
	p := &pinned{name: fmt.Sprintf("colmena-pinned-%d", pinnedCount.Add(1)), tls: tls}
	defer func() {
		if err != nil {
			_ = p.free(tls) // nothing is registered yet
		}
	}()
	zBase, err := cstr(tls, baseName)
	if err != nil {
		return nil, err
	}
	defer cfree(tls, zBase)
	base := lib.Xsqlite3_vfs_find(tls, zBase)
	if base == 0 {
		return nil, misuse("there is no VFS %q", baseName)
	}
	if p.rng, err = calloc(tls, unsafe.Sizeof(chance{})); err != nil {
		return nil, err
	}
	if p.vfs, err = calloc(tls, unsafe.Sizeof(pinnedVFS{})); err != nil {
		return nil, err
	}
	v := at[pinnedVFS](p.vfs)
	v.Tsqlite3_vfs = *at[lib.Tsqlite3_vfs](base)
	v.FpNext, v.FzName = 0, 0
	v.base, v.now = base, julianUnixMilli
	v.FxOpen, v.FxCurrentTime, v.FxCurrentTimeInt64 = fpPinnedOpen, fpPinnedNow, fpPinnedNow64
	v.FiVersion = max(v.FiVersion, 2) // from 2 on SQLite asks for the time as an integer
	if v.FzName, err = cstr(tls, p.name); err != nil {
		return nil, err
	}
	if rc := lib.Xsqlite3_vfs_register(tls, p.vfs, 0); rc != lib.SQLITE_OK {
		return nil, &Error{Code: int(rc & 0xff), Extended: int(rc), Msg: "register VFS", Offset: -1}
	}
	p.inUse = true
	noLocalTime.Store(tls, struct{}{})
	return p, nil
}

// free undoes newPinned. No connection may use the registration any more.
func (p *pinned) free(tls *libc.TLS) error {
	noLocalTime.Delete(p.tls)
	if p.inUse {
		p.inUse = false
		if rc := lib.Xsqlite3_vfs_unregister(tls, p.vfs); rc != lib.SQLITE_OK {
			return &Error{Code: int(rc & 0xff), Extended: int(rc), Msg: "unregister VFS", Offset: -1}
		}
	}
	if p.vfs != 0 {
		cfree(tls, at[pinnedVFS](p.vfs).FzName)
	}
	cfree(tls, p.vfs)
	cfree(tls, p.rng)
	p.vfs, p.rng = 0, 0
	return nil
}

// pinnedOpenC opens files as the base VFS, which looks at its own name to know
// that it is the exclusive one.
func pinnedOpenC(tls *libc.TLS, vfs, zName, file uintptr, flags int32, outFlags uintptr) int32 {
	base := at[pinnedVFS](vfs).base
	open := at[lib.Tsqlite3_vfs](base).FxOpen
	return (*(*func(*libc.TLS, uintptr, uintptr, uintptr, int32, uintptr) int32)(unsafe.Pointer(&struct{ uintptr }{open})))(
		tls, base, zName, file, flags, outFlags)
}

func pinnedNow64C(_ *libc.TLS, vfs, out uintptr) int32 {
	*at[int64](out) = at[pinnedVFS](vfs).now
	return lib.SQLITE_OK
}

func pinnedNowC(_ *libc.TLS, vfs, out uintptr) int32 {
	*at[float64](out) = float64(at[pinnedVFS](vfs).now) / 86400000
	return lib.SQLITE_OK
}

// SetNow sets the time a pinned connection sees from its next statement on, in
// milliseconds since 1970. Until it is called the time is 1970-01-01.
func (c *Conn) SetNow(unixMilli int64) {
	if c.pin != nil && c.pin.vfs != 0 {
		at[pinnedVFS](c.pin.vfs).now = unixMilli + julianUnixMilli
	}
}

// SetSeed starts the sequence of random() and randomblob() of a pinned
// connection afresh. Until it is called the seed is 0.
func (c *Conn) SetSeed(seed uint64) {
	if c.pin != nil && c.pin.rng != 0 {
		*at[chance](c.pin.rng) = chance{seed: seed}
	}
}

// SeedUsed reports that random() or randomblob() was called since SetSeed.
func (c *Conn) SeedUsed() bool {
	return c.pin != nil && c.pin.rng != 0 && at[chance](c.pin.rng).used != 0
}

// chance is xoshiro256** with its state expanded from the seed by splitmix64
// at the first draw: most statements draw nothing. It lives in C memory and
// its sequence is part of the replicated format: it must never change.
type chance struct {
	seed uint64
	used uint64
	s    [4]uint64
}

func (r *chance) next() uint64 {
	if r.used == 0 {
		r.used = 1
		x := r.seed
		for i := range r.s {
			x += 0x9e3779b97f4a7c15
			z := x
			z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
			z = (z ^ z>>27) * 0x94d049bb133111eb
			r.s[i] = z ^ z>>31
		}
	}
	s := &r.s
	v := bits.RotateLeft64(s[1]*5, 7) * 9
	t := s[1] << 17
	s[2] ^= s[0]
	s[3] ^= s[1]
	s[1] ^= s[2]
	s[0] ^= s[3]
	s[2] ^= t
	s[3] = bits.RotateLeft64(s[3], 45)
	return v
}

// overrideChance puts the connection's own random() and randomblob() before
// SQLite's, which draw from one generator of the whole process.
func (p *pinned) overrideChance(c *Conn) error {
	for _, f := range []struct {
		name string
		args int32
		fn   uintptr
	}{{"random", 0, fpRandom}, {"randomblob", 1, fpRandomBlob}} {
		z, err := cstr(c.tls, f.name)
		if err != nil {
			return err
		}
		rc := lib.Xsqlite3_create_function_v2(c.tls, c.db, z, f.args, lib.SQLITE_UTF8|lib.SQLITE_INNOCUOUS, p.rng, f.fn, 0, 0, 0)
		cfree(c.tls, z)
		if rc != lib.SQLITE_OK {
			return c.fail(rc, "")
		}
	}
	return nil
}

func randomC(tls *libc.TLS, ctx uintptr, _ int32, _ uintptr) {
	v := int64(at[chance](lib.Xsqlite3_user_data(tls, ctx)).next())
	if v < 0 {
		v = -(v & math.MaxInt64) // as SQLite does: abs(random()) must not overflow
	}
	lib.Xsqlite3_result_int64(tls, ctx, v)
}

func randomBlobC(tls *libc.TLS, ctx uintptr, _ int32, argv uintptr) {
	n := max(1, lib.Xsqlite3_value_int64(tls, *at[uintptr](argv)))
	db := lib.Xsqlite3_context_db_handle(tls, ctx)
	if n > int64(lib.Xsqlite3_limit(tls, db, lib.SQLITE_LIMIT_LENGTH, -1)) {
		lib.Xsqlite3_result_error_toobig(tls, ctx)
		return
	}
	p := lib.Xsqlite3_malloc64(tls, uint64(n))
	if p == 0 {
		lib.Xsqlite3_result_error_nomem(tls, ctx)
		return
	}
	r := at[chance](lib.Xsqlite3_user_data(tls, ctx))
	b := view(p, int(n))
	for i := 0; i < len(b); {
		for v := r.next(); ; v >>= 8 {
			b[i] = byte(v)
			if i++; i%8 == 0 || i == len(b) {
				break
			}
		}
	}
	lib.Xsqlite3_result_blob64(tls, ctx, p, uint64(n), fpFree)
}

// noLocalTime holds the TLS of every pinned connection. SQLite's conversion to
// local time has one hook for the whole process, and what it hands to the hook
// is the TLS of the connection that asks.
var noLocalTime sync.Map // *libc.TLS -> struct{}

// The hook goes in before any connection of the process can exist, so that no
// goroutine reads SQLite's configuration while it changes.
func init() {
	tls := libc.NewTLS()
	defer tls.Close()
	bp := tls.Alloc(16)
	defer tls.Free(16)
	lib.Xsqlite3_test_control(tls, lib.SQLITE_TESTCTRL_LOCALTIME_FAULT, libc.VaList(bp, int32(2), fp(localTimeC)))
}

// localTimeC fills the C struct tm at out with the local time of the time_t at
// t; anything but 0 makes SQLite fail with "local time unavailable". For
// connections that are not pinned it is what SQLite does without the hook. The
// caller holds a mutex of SQLite that guards the static result of localtime.
func localTimeC(tls *libc.TLS, t, out uintptr) int32 {
	if _, ok := noLocalTime.Load(tls); ok {
		return 1
	}
	p := localtime(tls, t)
	if p == 0 {
		return 1
	}
	*at[lib.Ttm](out) = *at[lib.Ttm](p)
	return 0
}
