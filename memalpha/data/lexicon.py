"""Word lists of the synthetic sources: a vocabulary of a few hundred common words.

Entities (people, firms, items) are pairs of these words, so that train, validation and test can be
disjoint in entities while every single word is seen in training.
"""

FIRST_NAMES = """Anna Boris Clara David Elena Felix Greta Hugo Ines Jonas Karin Leo Mira Nils Olga
Paul Rosa Simon Tara Urs Vera Walter Xenia Yuri Zora Adam Bella Carl Dora Emil Fiona Gustav Hanna
Igor Julia Kurt Lena Marco Nora Oscar Petra Ralf Sonja Tom Ursula Victor Wilma Yara Albert Bruno
Cora Doris Edgar Frieda Georg Helga Ivan Jana Klara Lukas Maria Norbert Otmar Pia""".split()

LAST_NAMES = """Abel Berger Conrad Dahl Ekman Fischer Gruber Holm Ivers Jansen Keller Lind Moser
Norden Olsen Palmer Quist Reuter Sander Thorn Ulrich Vogel Weber Young Zeller Arndt Brandt Cramer
Dreyer Ebert Falk Graf Hauser Imhof Jordan Kramer Lorenz Maurer Nagel Otto Peters Richter Stark
Tanner Voss Wolf Ziegler Winter Adler Bauer Decker Engel Fuchs Geiger Herzog Jung Koch Lang Meyer
Neumann Pohl Roth Schulz Vetter Ackermann Busch Dietrich Eberle Franke Gerber Hartmann Jakobsen
Kessler Lehmann Naumann Pfeiffer Rasmussen Seidel Thalberg Wagner""".split()

TOWNS = """Oslo Lund Bern Graz Turin Porto Malmo Ghent Basel Split Cork Leeds Nantes Bremen Parma
Vigo Tartu Riga Krakow Brno Tampere Bergen Utrecht Lyon""".split()

FIRM_NAMES = """Norvik Alpina Castor Delphi Everest Fulmar Granit Helios Indigo Jupiter Kestrel
Lumen Meridian Nimbus Orion Pegasus Quartz Rubin Saturn Topaz""".split()
FIRM_KINDS = "Press Motors Foods Textiles Software Shipping Glass Energy Toys Insurance".split()

COLOURS = "blue green red yellow white black silver golden purple orange brown grey".split()
ITEMS = """kayak lamp fence bicycle piano carpet mirror cabinet drum tent ladder clock basket chair
canoe violin bench kettle ring sword crown lantern compass statue""".split()
PLACES = (
    "mill tower harbour forest castle cave bridge garden chapel market valley lighthouse".split()
)
PLACE_ADJECTIVES = "old ruined hidden silent northern frozen sunken forgotten".split()

DISHES = "risotto goulash paella ramen dumplings lasagne curry pancakes chowder falafel".split()
PETS = "parrot hamster terrier tortoise rabbit goldfish lizard ferret pony canary".split()
INSTRUMENTS = "cello flute trumpet banjo harp clarinet viola tuba guitar trombone".split()
LANGUAGES = "Danish Polish Greek Finnish Catalan Welsh Turkish Latvian Dutch Basque".split()
JOBS = "baker nurse pilot plumber lawyer florist butcher dentist tailor barber".split()
HOBBIES = (
    "chess pottery fencing origami archery rowing juggling surfing gardening carpentry".split()
)

# relation -> values. A fact is (person, relation, value).
RELATIONS = {
    "home town": TOWNS,
    "favourite dish": DISHES,
    "pet": PETS,
    "instrument": INSTRUMENTS,
    "mother tongue": LANGUAGES,
    "trade": JOBS,
    "hobby": HOBBIES,
    "favourite colour": COLOURS,
}

COUNTABLE = ("pet", "instrument", "trade")  # their values take an article

ACTORS = ("I", "My brother", "My sister", "My neighbour", "My aunt", "My colleague")
# Regular verbs only: base form -> past tense, so that a light stemmer matches question and event.
EVENT_VERBS = {
    "paint": "painted",
    "repair": "repaired",
    "order": "ordered",
    "borrow": "borrowed",
    "clean": "cleaned",
    "photograph": "photographed",
}

# class of request -> (verbs, nouns): what the labelled sentences are made of.
INTENTS = {
    "music": (("play", "shuffle"), ("song", "album")),
    "travel": (("book", "cancel"), ("flight", "hotel")),
    "kitchen": (("boil", "roast"), ("potatoes", "chicken")),
    "mail": (("forward", "archive"), ("letter", "invoice")),
    "house": (("dim", "heat"), ("bedroom", "hallway")),
    "sport": (("watch", "record"), ("match", "regatta")),
    "money": (("transfer", "withdraw"), ("deposit", "pension")),
    "calendar": (("schedule", "postpone"), ("meeting", "interview")),
}
REQUEST_LEADS = (
    "please", "could you", "would you", "I want to", "it is time to", "help me", "do not forget to",
    "remind me to",
)  # fmt: skip
REQUEST_TAILS = (
    "now", "today", "tonight", "tomorrow", "this evening", "before lunch", "after work", "at noon",
    "next week", "on Monday",
)  # fmt: skip

FILLER = (
    "The weather was mild and the road was quiet.",
    "It rained a little in the afternoon.",
    "Nothing else happened for a while.",
    "The coffee was warm and the room was bright.",
    "Somebody opened a window and closed it again.",
    "The bus came late, as it often does.",
    "A few leaves fell on the path.",
    "The lights were on in the street.",
    "There was a little noise from the yard.",
    "The evening was calm and clear.",
    "It was a day like many others.",
    "The queue at the counter was short.",
)
CHATTER = (
    "How are you today?",
    "I slept well and the tea was good.",
    "It is rather windy outside.",
    "That is nice to hear.",
    "I have no special plans.",
    "Thank you, that helps.",
    "The train was late again.",
    "I am a little tired this morning.",
)
REPLIES = ("I see.", "That sounds good.", "Thank you for telling me.", "Noted.")
