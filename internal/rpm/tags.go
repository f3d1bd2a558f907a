package rpm

// Tag numbers an entry of a header (rpm's include/rpm/rpmtag.h).
type Tag uint32

// Tags of the signature header. Their numbers overlap with those of the main header.
const (
	SigRegion   Tag = 62
	SigDSA      Tag = 267 // header signature by DSA, ECDSA or EdDSA
	SigRSA      Tag = 268 // header signature by RSA
	SigSHA1     Tag = 269 // hex sha1 of the header
	SigLongSize Tag = 270
	SigLongArch Tag = 271
	SigSHA256   Tag = 273 // hex sha256 of the header
	SigFileSigs Tag = 274 // IMA signatures
	SigFileLen  Tag = 275
	SigVerity   Tag = 276
	SigVerAlgo  Tag = 277
	SigOpenPGP  Tag = 278 // base64 signatures, rpm 6
	SigSHA3     Tag = 279
	SigReserve6 Tag = 999
	SigSize     Tag = 1000
	SigPGP      Tag = 1002 // header and payload signature by RSA, of rpm 3
	SigMD5      Tag = 1004 // of header and payload
	SigGPG      Tag = 1005 // header and payload signature by DSA, of rpm 3
	SigPayload  Tag = 1007
	SigReserve  Tag = 1008 // zeros that a signature may take
)

// Tags of the main header.
const (
	RegionImmutable Tag = 63
	I18NTable       Tag = 100

	Name         Tag = 1000
	Version      Tag = 1001
	Release      Tag = 1002
	Epoch        Tag = 1003
	Summary      Tag = 1004
	Description  Tag = 1005
	BuildTime    Tag = 1006
	BuildHost    Tag = 1007
	Size         Tag = 1009
	Vendor       Tag = 1011
	License      Tag = 1014
	Packager     Tag = 1015
	Group        Tag = 1016
	URL          Tag = 1020
	OS           Tag = 1021
	Arch         Tag = 1022
	PreIn        Tag = 1023
	PostIn       Tag = 1024
	PreUn        Tag = 1025
	PostUn       Tag = 1026
	OldFilenames Tag = 1027
	FileSizes    Tag = 1028
	FileModes    Tag = 1030
	FileRdevs    Tag = 1033
	FileMtimes   Tag = 1034
	FileDigests  Tag = 1035
	FileLinktos  Tag = 1036
	FileFlags    Tag = 1037
	FileUser     Tag = 1039
	FileGroup    Tag = 1040
	SourceRPM    Tag = 1044
	ArchiveSize  Tag = 1046
	ProvideName  Tag = 1047
	RequireFlags Tag = 1048
	RequireName  Tag = 1049
	RequireVer   Tag = 1050
	ConflFlags   Tag = 1053
	ConflName    Tag = 1054
	ConflVer     Tag = 1055
	ExcludeArch  Tag = 1059
	ExclArch     Tag = 1061
	ChangeTime   Tag = 1080
	ChangeName   Tag = 1081
	ChangeText   Tag = 1082
	PreInProg    Tag = 1085
	PostInProg   Tag = 1086
	PreUnProg    Tag = 1087
	PostUnProg   Tag = 1088
	BuildArchs   Tag = 1089
	ObsName      Tag = 1090
	FileInodes   Tag = 1096
	SourcePkg    Tag = 1106
	ProvideFlags Tag = 1112
	ProvideVer   Tag = 1113
	ObsFlags     Tag = 1114
	ObsVer       Tag = 1115
	DirIndexes   Tag = 1116
	Basenames    Tag = 1117
	DirNames     Tag = 1118
	OptFlags     Tag = 1122
	PayloadFmt   Tag = 1124
	PayloadComp  Tag = 1125
	LongFileSize Tag = 5008
	LongSize     Tag = 5009
	FileDigAlgo  Tag = 5011
	RecName      Tag = 5046
	RecVer       Tag = 5047
	RecFlags     Tag = 5048
	SugName      Tag = 5049
	SugVer       Tag = 5050
	SugFlags     Tag = 5051
	SupName      Tag = 5052
	SupVer       Tag = 5053
	SupFlags     Tag = 5054
	EnhName      Tag = 5055
	EnhVer       Tag = 5056
	EnhFlags     Tag = 5057
	PayloadSHA   Tag = 5092 // sha256 of the compressed payload
	PayloadAlgo  Tag = 5093
	PayloadAlt   Tag = 5097 // sha256 of the payload, not compressed
	RPMFormat    Tag = 5114
	PayloadSHA2  Tag = 5118 // rpm 6: sha512 and others
)

// Types of entries (rpm's lib/header.c).
const (
	TypeNull   uint32 = 0
	TypeChar   uint32 = 1
	TypeInt8   uint32 = 2
	TypeInt16  uint32 = 3
	TypeInt32  uint32 = 4
	TypeInt64  uint32 = 5
	TypeString uint32 = 6
	TypeBin    uint32 = 7
	TypeArray  uint32 = 8 // array of strings
	TypeI18N   uint32 = 9 // one string per locale
)

// Flags of files.
const (
	FileConfig = 1 << 0
	FileDoc    = 1 << 1
	FileGhost  = 1 << 6
)

// Flags of dependencies (rpmsenseFlags).
const (
	SenseLess    = 1 << 1
	SenseGreater = 1 << 2
	SenseEqual   = 1 << 3
	SensePreReq  = 1 << 6
	SensePre     = 1 << 9
	SensePost    = 1 << 10
	SenseRPMLib  = 1 << 24
)
