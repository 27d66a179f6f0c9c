package bootparam

// Segment is a segment register as the protocols want it: its base and its DPL are 0, and it is present.
type Segment struct {
	Selector   uint16
	Limit      uint32 // the last valid offset
	Type       uint8  // Intel SDM vol. 3A §3.4.5.1 and §3.5
	CodeOrData bool   // the S flag; clear for a task state segment
	Long       bool   // the L flag: 64-bit code
	Big        bool   // the D/B flag: 32-bit code or stack
	Granular   bool   // the G flag: the descriptor counts the limit in 4 KiB pages
}
