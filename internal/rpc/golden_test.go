package rpc

import (
	"encoding/hex"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/wire"
)

// TestFramesAreGolden pins every frame: a changed byte is a format that other
// nodes of the cluster do not read.
func TestFramesAreGolden(t *testing.T) {
	head := func(typ byte, n int) []byte {
		b := make([]byte, headBytes)
		putHead(b, typ, n)
		return b
	}
	for _, c := range []struct {
		name, want string
		got        []byte
	}{
		{"open", "0000000901e0c65b6d6574686f64", appendOpen(nil, "method", 1500*time.Millisecond)},
		{"data", "000004d202", head(frameData, 1234)},
		{"end", "0000000003", head(frameEnd, 0)},
		{"failure", "0000000b040126a62001016d01730164", appendFailure(nil, &wire.Error{Code: wire.ErrSQL, Primary: 19, Extended: 2067, Offset: -1,
			Msg: "m", SQL: "s", Detail: "d"})},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
