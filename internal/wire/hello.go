package wire

import "encoding/binary"

// Purposes of a connection. Append-only; the receiver refuses one that it does not serve.
const (
	PurposeRaft   uint8 = 1
	PurposeRPC    uint8 = 2
	PurposeDirect uint8 = 3 // calls too, one stream at a time
)

// Hello is the first frame in both directions once the connection is authenticated. It does not alias the frame.
type Hello struct {
	Purpose                        uint8
	ClusterID, NodeID, Incarnation string
	Addr                           string // advertised address, may be empty
	WantNodeID, WantIncarnation    string // whom the dialer means to reach, empty for anybody
	FormatMin, FormatMax           uint16 // format versions that the sender reads
	Engine                         uint64 // engine fingerprint
}

// Append appends the encoded greeting to b.
func (h *Hello) Append(b []byte) []byte {
	b = append(b, MsgHello, version, h.Purpose)
	b = appendString(b, h.ClusterID)
	b = appendString(b, h.NodeID)
	b = appendString(b, h.Incarnation)
	b = appendString(b, h.Addr)
	b = appendString(b, h.WantNodeID)
	b = appendString(b, h.WantIncarnation)
	b = binary.AppendUvarint(b, uint64(h.FormatMin))
	b = binary.AppendUvarint(b, uint64(h.FormatMax))
	return binary.LittleEndian.AppendUint64(b, h.Engine)
}

// Decode decodes a greeting. Nothing aliases b.
func (h *Hello) Decode(b []byte) error {
	c, err := open(b, MsgHello, MaxHelloBytes)
	if err != nil {
		return err
	}
	id := func() string { return string(c.bytes("identifier bytes", MaxIDBytes)) }
	h.Purpose = c.byte()
	h.ClusterID = id()
	h.NodeID = id()
	h.Incarnation = id()
	h.Addr = string(c.bytes("address bytes", MaxAddrBytes))
	h.WantNodeID = id()
	h.WantIncarnation = id()
	h.FormatMin = c.uint16()
	h.FormatMax = c.uint16()
	h.Engine = c.fixed64()
	return c.end()
}
