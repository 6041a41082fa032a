package rpc

import "github.com/hashicorp/go-msgpack/v2/codec"

// Control messages, those that are not on the hot path, travel as msgpack: plain
// structs whose fields go by name and are only ever added.

var msgpack codec.MsgpackHandle

// EncodeControl encodes a control message; nil has no bytes.
func EncodeControl(v any) []byte {
	var b []byte
	if v != nil {
		// Encoding plain structs to memory does not fail.
		_ = codec.NewEncoderBytes(&b, &msgpack).Encode(v)
	}
	return b
}

// DecodeControl decodes a control message into v, a pointer. Fields that v does not
// have are passed over.
func DecodeControl(b []byte, v any) error { return codec.NewDecoderBytes(b, &msgpack).Decode(v) }
