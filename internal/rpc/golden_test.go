package rpc

import (
	"encoding/hex"
	"reflect"
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

// TestControlMessagesAreGolden pins how plain structs travel: by the names of their
// fields, of which a receiver passes over those it does not have.
func TestControlMessagesAreGolden(t *testing.T) {
	type message struct {
		Name string
		Body []byte
	}
	want := message{"name", []byte("body")}
	if got := hex.EncodeToString(EncodeControl(&want)); got != "82a4426f6479a4626f6479a44e616d65a46e616d65" {
		t.Errorf("%s", got)
	}
	if b := EncodeControl(nil); len(b) != 0 {
		t.Errorf("nothing has %d bytes", len(b))
	}
	var got message
	if err := DecodeControl(EncodeControl(&struct {
		message
		Later int
	}{want, 7}), &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("with a field more: %+v, %v", got, err)
	}
	if err := DecodeControl([]byte{0xc1}, &got); err == nil {
		t.Error("garbage is taken")
	}
}
