"""Words that a mirrored image would make untrue and that are not swapped, and words by which English is known.

All in lower-case ASCII: whatever has another letter is not taken for English in the first place, so of other languages only
words stand here that are typed without accents.
"""

from itertools import product
from string import ascii_lowercase

ANOTHER_LANGUAGE = "another language"
SHORT_OR_MISSPELT = "left or right, abbreviated or misspelt"
HANDED = "a side that is not the viewer's (port, driver's side, clockwise)"
COMPASS = "east and west"
WRITTEN = "writing, which a mirror makes unreadable"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Left and right of some fifty languages, where they can be typed in ASCII (romanised too).
_FOREIGN_SIDES = _words("""
    izquierda izquierdo izquierdas izquierdos izq izqda derecha derecho derechas derechos dcha dcho zurdo siniestra diestra
    esquerda esquerdo esquerdas esquerdos direita direito direitas direitos esq dereita dereito
    gauche gauches droite droites droit sinistra sinistro sinistri sinistre destra destro destri destre dx sx
    esquerra esquerre dreta dret stanga stangul dreapta drept links linke linker linkes linkem linken linkse linkerkant
    linksaussen rechts rechte rechter rechtes rechtem rechten rechtse rechterkant recht regs regter regterkant linkerhand
    rechterhand venstre hojre hoyre hogre vanster vanstra hoger hogra vinstri haegri vasen vasemman vasemmalla vasemmalta
    vasemmanpuoleinen oikea oikean oikealla oikealta oikeanpuoleinen vasak vasakul vasakpoolne parem paremal parempoolne
    bal balra balrol baloldali baloldalon jobb jobbra jobbrol jobboldali jobboldalon lewo lewa lewy lewe lewej lewym
    lewego lewemu prawo prawa prawy prawe prawej prawym prawego prawemu vlevo vpravo nalevo napravo levy leva leve levem
    levou levo pravy prava prave pravem pravou pravo vlavo lavy lava lijevo lijevi lijeva lijevog desno desni desna desnog
    desnom levi levog levom ljevo kreisi kaire kairys kaireje desine desineje majtas djathtas sol sola solda soldaki soldan
    solunda solundaki sag saga sagda sagdaki sagdan saginda sagindaki kiri kanan kaliwa kushoto kulia trai phai ezker ezkerra
    ezkerreko eskuin eskuina eskuineko xellug lemin bidix midig goch adwat maldekstra dekstra sinister dexter chwith dde
    kwesokunxele kwesokudla hagu otun osi baen baaen bayen baayen bayan baayein bayein baayi daen daaen dayen daayen dayan
    daayein daayi dahine dahina daahine daahini yasar yameen yamin baam daan hidari migi oenjjok oreunjjok wenjjok zuobian
    sleva sprava levyy levyj levaya pravyy pravyj pravaya levoy pravoy levee pravee smol yemin kavian
""")
# Words that carry no meaning of their own and are no English ones.
_FOREIGN_FUNCTION_WORDS = _words("""
    el los las la una unos unas uno del de con que por para sobre entre esta este um uma dos das ao nos com le les une des
    du au aux avec qui sur sous dans est et il lo gli della delle dello dei degli nel nella sul sulla che der das dem ein
    eine einen einem einer eines und mit auf von vom zum zur ist neben het een naast och og med ett jest obok bir ile olan
    yang di dengan pada ini itu sebelah paling hai mein wala wali
""")
_REAL_WORDS = _words("""
    lift loft let lent lest deft heft weft reft cleft eft leet bright fright wright eight fight light might night sight tight
    bight wight aright
""")
# They hold "left" or "right" and say no side.
HARMLESS = _words("""
    bright brighter brightest brightly brightness upright uprights fright frightened frightening copyright copyrighted cleft
    leftover leftovers wright playwright shipwright outright forthright birthright downright alright aright cartwright
    albright wainwright cartwrights righteous
""")


def _misspelt(word: str) -> set[str]:
    """What one slip of the finger makes of it."""
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    found = {a + b[1:] for a, b in cuts if b} | {a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1}
    for (a, b), letter in product(cuts, ascii_lowercase):
        found |= {a + letter + b, a + letter + b[1:]}
    return found - {word, word + "s"}


_MISSPELT = (_misspelt("left") | _misspelt("right")) - _REAL_WORDS - HARMLESS

# {word: why an image is not mirrored where it stands in an expression}
FORBIDDING = {
    **dict.fromkeys(_FOREIGN_SIDES | _FOREIGN_FUNCTION_WORDS, ANOTHER_LANGUAGE),
    **dict.fromkeys({word + end for word in _MISSPELT for end in ("", "most", "hand", "side")}, SHORT_OR_MISSPELT),
    **dict.fromkeys(
        _words("lt rt rgt rgth rhs lhs lh rh rite lf rf fl fr rl rr bl br tl tr ul ur ll lr lside rside lhand rhand"),
        SHORT_OR_MISSPELT,
    ),
    **dict.fromkeys(
        _words(
            "port portside starboard larboard southpaw nearside offside clockwise anticlockwise counterclockwise cw ccw oclock"
        ),
        HANDED,
    ),
    **dict.fromkeys(
        {
            "".join(parts)
            for parts in product(
                ("", "north", "south", "mid"),
                ("east", "west"),
                ("", "ern", "erner", "erly", "ward", "wards", "bound", "most", "side"),
            )
        },
        COMPASS,
    ),
    **dict.fromkeys(_words("ne nw se sw map maps atlas meridian longitude"), COMPASS),
    **dict.fromkeys(
        _words("""
            say says saying said reads reading written writing writes spell spelled spelling spells label labels labeled labelled
            letter letters lettered lettering word words wording text texts number numbers numbered numeral numerals digit digits
            logo logos initials inscription inscribed caption captioned title titled entitled slogan signature autograph monogram
            alphabet typed quote quotes
            b c d e f g j k p q z
        """),
        WRITTEN,
    ),
    **dict.fromkeys("lr", SHORT_OR_MISSPELT),
}  # fmt: skip

ORDINALS = _words("first second third fourth fifth sixth seventh eighth ninth tenth last st nd rd th")

# One of these, and a text is English; they are rare in other languages.
ENGLISH = _words("""
    the of with and at by from near next to behind above below under between beside holding wearing standing sitting facing
    looking riding that who whose which this his her their its other another all both only one two three not
    man woman boy girl guy lady kid child children person people men women player baby dude gentleman
    dog cat horse elephant zebra giraffe bear bird cow sheep animal teddy
    car truck bus train bike bicycle motorcycle boat airplane plane van vehicle traffic light sign stop hydrant meter
    skateboard surfboard snowboard skis kite ball bat glove racket frisbee umbrella backpack handbag purse suitcase tie
    chair table couch sofa bed bench bowl plate cup mug glass bottle fork knife spoon toilet sink oven microwave refrigerator
    fridge toaster cake pizza sandwich banana apple broccoli carrot donut book clock vase scissors laptop keyboard phone
    remote mouse screen monitor toothbrush tree house flower grass sky road street wall building fence
    red white black blue green yellow brown grey gray pink purple orange dark bright striped
    big bigger biggest small smaller smallest large larger largest tall taller tallest short shorter long
    left right top bottom front back middle center centre side corner edge upper lower upper highest lowest closest closer
    nearest furthest farthest far leftmost rightmost topmost bottommost whole
    wheel tire window door roof mirror bumper hood trunk head hair arm hand leg foot feet tail ear eye nose mouth face neck
    wing beak body shirt hat jacket pants shorts shoe shoes dress coat sleeve handle lid rim seat leaf stem petals stalk
""")
